# Two commands: `make demo` builds a real model end to end, `make test` proves that all of this works. `make devices`
# before it fetches an emulated processor, a browser's engine library and axe, whose tests are skipped otherwise.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Where it is set, as in many containers, each of a run's processes would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# How many inputs `make fuzz` tries.
INPUTS ?= 10000

.PHONY: demo test fuzz style types board-types devices docs clean

demo: $(INSTALLED)
	$(BIN)/edgekd build --recipe demo --target cpu
	$(BIN)/python examples/run_bundle.py build/demo/cpu/bundle

devices: $(INSTALLED)
	$(BIN)/edgekd device install emulated:cortex-a76
	$(BIN)/edgekd device install browser
	$(BIN)/python tests/axe.py

# What one core checks, while others check the rest; then the tests, on two.
test: $(INSTALLED)
	$(MAKE) --no-print-directory --jobs --output-sync=target style types board-types
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# Broken and hostile recipes, tasks, models, samples and bundles; the tests try a few hundred. Another START draws others.
fuzz: $(INSTALLED)
	$(BIN)/python tests/fuzz/fuzz.py --inputs $(INPUTS) --start $(or $(START),0)

style: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

# With the standard library that boards have.
board-types: $(INSTALLED)
	$(BIN)/mypy --python-version 3.10 --no-warn-return-any --cache-dir .mypy_cache/board -p edgekd.runtime -p edgekd.gram

$(INSTALLED): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgekd builds with Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[build,dev]"
	touch $@

# The site, in build/site; the tests build it too.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .edgekd build dist *.egg-info
