"""What pyproject.toml cannot say: `targets/` and `calibration/` travel inside the package, as `edgekd/targets` ...."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["edgekd", "edgekd.*"]), "edgekd.targets", "edgekd.calibration"],
    package_dir={"edgekd.targets": "targets", "edgekd.calibration": "calibration"},
)
