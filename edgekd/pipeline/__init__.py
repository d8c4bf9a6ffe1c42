"""A build: the order of its stages, from the source of a model to published bundles."""
