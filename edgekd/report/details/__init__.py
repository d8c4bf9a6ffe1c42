"""What lies behind one figure of quality: classes, samples and groups, of what ships beside what it was made of."""
