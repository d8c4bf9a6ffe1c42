"""A task's data out of a table or out of folders of files, divided into splits."""
