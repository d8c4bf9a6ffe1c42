"""The user's task: its protocol, its data and its networks."""
