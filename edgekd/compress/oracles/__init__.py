"""Independent checks of rewritten graphs: its rounding left aside, each is the float network that it was made of."""
