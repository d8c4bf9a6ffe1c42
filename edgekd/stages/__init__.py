"""Stages of a build under the cache, their progress, and the files that stages leave for each other."""
