"""Headless Chromium as a device: onnxruntime-web runs the engines in a page that this process serves."""

from edgekd.devices.browser.device import BrowserDevice
from edgekd.devices.browser.library import install

__all__ = ["BrowserDevice", "install"]
