"""What is measured on a device: latency, layers, energy, sensors, and the facts of the machine."""
