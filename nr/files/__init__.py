"""Networks as plain data and as files."""
