"""Search: train many recipes near the user's own, several at a time, and find those that no other beats."""
