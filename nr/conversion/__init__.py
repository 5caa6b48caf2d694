"""Networks of torch, traced and made of units."""
