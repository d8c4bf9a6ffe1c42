"""Processors that QEMU emulates on this host."""
