"""The second half of a build, for one target: candidates are written, run, judged, repaired, timed. No torch."""
