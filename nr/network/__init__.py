"""What a network is: units, layers, graphs, and the one walk over them."""
