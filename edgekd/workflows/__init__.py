"""The library functions behind the commands: build, check, blame, advise, search, profile and verify."""
