"""What the examples share: options, data, training, checkpoints, figures."""
