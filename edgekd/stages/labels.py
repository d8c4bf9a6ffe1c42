"""Labels of samples. Importing this module imports no torch."""

#: Label of a sample without a class, and of a position or a step without one. Distillation uses such samples; the
#: cross entropy skips them, and so do metrics.
UNLABELLED = -100
