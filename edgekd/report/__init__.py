"""Results as tables: terminal, Markdown, JSON."""
