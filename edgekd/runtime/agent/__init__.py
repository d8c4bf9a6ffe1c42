"""The process in which an engine runs, on this host and on a board."""
