"""Recipes and targets: validated, frozen configuration read from TOML."""
