"""What the two scripts share: options, data, engine, checkpoints, logs and pictures."""
