"""Headless Chromium as a device: onnxruntime-web runs the engines in a page that this process serves."""
