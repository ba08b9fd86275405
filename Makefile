# make demo: the whole thing on drawn poses. make test: the tests. make bench: the benchmarks.
# make faults: some two thousand cases of strange input, in minutes.

VENV ?= .venv
PYTHON ?= python3
# `mlflow run --env-manager local` takes python from PATH, so the environment goes first in it.
RUN = PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
# Files of tests run side by side; a file's tests share what it sets up.
WORKERS ?= 2

.PHONY: env demo test faults lint bench clean

env: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-sweep.txt requirements-timm.txt requirements-onnx.txt \
    requirements-ray.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "error: Python 3.11 or newer is needed, found `$(PYTHON) --version`: set PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	    { echo "error: no environment could be made: apt-get install python3-venv"; exit 2; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: env
	$(RUN) mlflow run . -e train --env-manager local -P run=demo -P dataset=demo
	$(RUN) mlflow run . -e ensemble --env-manager local -P run=demo -P dataset=demo
	@$(RUN) python -m entrypoints.data --command score --dataset demo
	@echo "to look at it: $(VENV)/bin/mlflow ui, then open the link to the seeds above"

test: env
	$(RUN) python -m pytest -n $(WORKERS) --dist loadfile

faults: env
	$(RUN) python -m pytest -q -m faults tests/faults

lint: env
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: env
	$(RUN) python -m benchmarks.run_all

clean:
	rm -rf $(VENV)
