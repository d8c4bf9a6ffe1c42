"""What a device needs: numpy and one engine library. Runs on Python 3.10, imports no torch."""
