"""The stages of one target: candidates are written, run, judged, repaired, timed and bundled, without torch."""
