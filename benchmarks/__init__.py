"""How fast fastrnn's layers are beside torch.nn's: `python -m benchmarks` measures and reports."""
