"""Removing channels in dependency groups."""
