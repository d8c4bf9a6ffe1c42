"""The kit that every picture of a report is drawn with."""
