"""Where engines run: this host, or a board."""
