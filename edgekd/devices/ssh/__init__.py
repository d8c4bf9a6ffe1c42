"""A board over the system's OpenSSH: its own torch-free agent there, in one folder, over one connection."""
