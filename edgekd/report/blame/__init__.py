"""Tables and pictures of what INT8 breaks."""
