"""For code that does not know nr: one loss, one output, one module of torch's own layers."""
