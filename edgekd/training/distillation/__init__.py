"""The teacher, the student that is distilled from it, and the losses."""
