"""Where embeddings are read in a network."""
