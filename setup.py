"""Packaging. The data folders `targets/` and `calibration/` travel inside the package: `edgekd/targets` ...."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SOURCE = (HERE / "edgekd" / "__init__.py").read_text(encoding="utf-8").splitlines()
VERSION = next(line.split('"')[1] for line in SOURCE if line.startswith("__version__"))
#: Where NVIDIA publishes TensorRT-RTX for Python.
NVIDIA = 'sys_platform == "linux" and platform_machine == "x86_64"'

setup(
    name="edgekd",
    version=VERSION,
    description="Distil multi-modal models for edge devices, and prove that their Gram structure survives",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["edgekd", "edgekd.*"]), "edgekd.targets", "edgekd.calibration"],
    package_dir={"edgekd.targets": "targets", "edgekd.calibration": "calibration"},
    package_data={
        "edgekd": ["py.typed"],
        "edgekd.cli": ["template/*"],
        "edgekd.targets": ["*.toml"],
        "edgekd.calibration": ["*.toml"],
        "edgekd.tasks": ["*.toml"],
        "edgekd.runtime": ["*.json"],
        "edgekd.devices.browser": ["*.html", "*.js"],
        "edgekd.report.compare": ["*.css", "*.js"],
    },
    install_requires=["numpy>=1.26", "click>=8.1", "msgspec>=0.19", "rich>=13.7", 'tomli>=2; python_version < "3.11"'],
    extras_require={
        "runtime": ["onnxruntime>=1.20"],
        "openvino": ["openvino>=2025.0"],
        "tensorrt": ["tensorrt>=10.3"],
        "build": [
            "torch>=2.9",
            "torch-pruning>=1.6",
            "onnx>=1.18",
            "onnxscript>=0.5",
            "onnxruntime>=1.32",
            "safetensors>=0.5",
            "filelock>=3.15",
            "openvino>=2026.0",
            "nncf>=3.3",
            *(f"tensorrt-rtx-cu12-{part}>=1.5; {NVIDIA}" for part in ("libs", "bindings")),
        ],
        "search": ["optuna>=5.0"],
        "dev": [
            "optuna>=5.0",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6",
            "jsonschema>=4.20",
            "build>=1.2",
            "setuptools>=77",
            "ruff",
            "mypy",
            "import-linter>=2",
            "matplotlib>=3.9",
            "scipy>=1.13",
            "transformers>=5.24",
            "mkdocs>=1.6",
            "mkdocs-material>=9.7",
            "mkdocstrings[python]>=1.0",
        ],
    },
    entry_points={"console_scripts": ["edgekd=edgekd.cli:main"]},
    classifiers=["Programming Language :: Python :: 3", "Typing :: Typed"],
)
