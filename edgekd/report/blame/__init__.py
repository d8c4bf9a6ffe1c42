"""The table, the picture and the files of a blame: what INT8 breaks."""
