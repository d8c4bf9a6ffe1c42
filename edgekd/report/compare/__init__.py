"""The outputs of builds and profiles, read back and joined into one table."""
