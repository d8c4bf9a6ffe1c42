"""How two networks' outputs of one kind are compared: one measure for each kind, in a stream over the samples."""
