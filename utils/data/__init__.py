"""Images and labels: made, listed, decoded, and cut in batches."""
