"""The files that a build leaves: Markdown, HTML, JSON and pictures."""
