# The two commands: `make sweep` and `make test`. Each makes .venv first if it is not there.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install sweep test browser-test experiments coverage check bench keep-bench gpu-test sanitize gpu-session schemas reference readme architecture constraints dist release clean

help:            ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(STAMP) ## .venv with the pinned environment

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "Bitsweep needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

sweep: $(STAMP)  ## quantize the embedded model at several bit widths, measure it, print the table
	$(BIN)/bitsweep run experiment=quickstart

test: $(STAMP)   ## the test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not experiment and not browser'

browser-test: $(STAMP) ## the report's page in Chromium (Debian: apt install chromium chromium-driver)
	$(BIN)/python -m pytest -q -rs -m browser tests/harness/report

# The package asks for Python 3.12, and only a file of it is needed.
schemas: $(STAMP) ## the schema that tests hold Every Eval Ever's records against
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 -d build/schemas every_eval_ever==0.3.0

experiments: $(STAMP) ## five experiments of the paper from plan to report, on the embedded model
	$(BIN)/python -m pytest -n 2 -m experiment tests/harness/run

# Python 3.11 counts lines by a function call each, which doubles the time; from 3.12 on they are
# counted by sys.monitoring.
coverage: export COVERAGE_CORE = $(shell $(BIN)/python -c 'import sys; print("sysmon" if sys.version_info >= (3, 12) else "ctrace")')
coverage: $(STAMP) ## the test suite with coverage of the packages
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not experiment and not browser' --cov --cov-report=term:skip-covered

check: $(STAMP)  ## ruff (lint, format) and mypy, as pre-commit runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)  ## timings (never run as tests)
	$(BIN)/python -m benchmarks

keep-bench: $(STAMP) ## run the benchmarks that docs quote and keep what they print
	$(BIN)/python tools/keep_benchmarks.py

gpu-test: $(STAMP) ## the tests that need a GPU
	$(BIN)/python -m pytest -m gpu tests/cuda_ext tests/quant

sanitize: $(STAMP) ## the CUDA kernels under compute-sanitizer: memcheck, racecheck, synccheck
	PYTHONPATH=. $(BIN)/python tools/sanitize.py

gpu-session: $(STAMP) ## everything that needs a GPU, tables to results/gpu (tools/gpu_session.sh)
	tools/gpu_session.sh

reference: $(STAMP) ## run the quickstart afresh and keep its records and tables in results/reference
	$(BIN)/python tools/reference.py

readme: $(STAMP) ## write the generated parts of README.md from results/reference
	$(BIN)/python tools/readme.py

architecture: $(STAMP) ## draw docs/architecture.svg from the imports
	$(BIN)/python -m tools.draw_architecture

dist: $(STAMP)  ## build wheel and sdist and check them, into dist/
	$(BIN)/python -m tools.dist

release: $(STAMP) ## cut the changelog and build: make release VERSION=0.2.0 (commits, tags and uploads nothing)
	@test -n "$(VERSION)" || { echo "name the version: make release VERSION=0.2.0" >&2; exit 2; }
	$(BIN)/python -m tools.release $(VERSION)
	$(MAKE) dist

constraints: $(STAMP) ## freeze the versions in .venv
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

clean:           ## remove what can be made again (not results/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
