"""One stage of a build under the cache, its progress, and the files that stages leave for each other."""
