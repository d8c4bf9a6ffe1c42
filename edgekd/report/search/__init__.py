"""The table, the picture and the files of a search."""
