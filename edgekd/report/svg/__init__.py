"""Drawing charts as SVG."""
