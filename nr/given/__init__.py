"""What others take: one loss, one output, one module of torch's own layers."""
