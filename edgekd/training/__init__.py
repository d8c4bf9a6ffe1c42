"""Train, distil, prune and export: everything that needs torch."""
