"""What edgekd does beside a build: check, advise, search, profile and verify bundles."""
