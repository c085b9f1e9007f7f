"""What the examples share: options, data, training with both implementations, checkpoints, figures."""
