"""Search: many recipes near the user's own, several at a time, and which of them no other beats."""
