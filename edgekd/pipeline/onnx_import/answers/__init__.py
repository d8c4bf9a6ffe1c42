"""What the outputs of an imported model are, and by what they are measured."""
