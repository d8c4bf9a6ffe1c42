"""The default losses of each kind of output."""
