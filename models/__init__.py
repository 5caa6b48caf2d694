"""The networks of the paper, built from nr's units."""
