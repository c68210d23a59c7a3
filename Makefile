# Two commands need nothing before them: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/pip
STAMP := $(VENV)/.installed
RUNTIME := $(VENV)/.runtime
# Modules are compiled when they are first imported: most of what torch brings never is.
INSTALL := PIP_CONSTRAINT=constraints.txt $(PIP) install --disable-pip-version-check --no-compile --quiet --editable

.PHONY: demo test test-all lint bench clean

demo: $(RUNTIME)
	$(VENV)/bin/personae demo

# One worker a core, each with one thread; no more than four, since each may load the default model.
test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not all" -n logical --maxprocesses 4 --dist worksteal --cov --cov-report=term

# The demonstration, and servers as processes of their own; what needs a browser, llama.cpp or Ray joins here.
test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m all

lint: $(STAMP)
	$(VENV)/bin/ruff check src tests benchmarks examples
	$(VENV)/bin/ruff format --check src tests benchmarks examples
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

bench: $(STAMP)
	$(VENV)/bin/python -m benchmarks.run
	$(VENV)/bin/python -m benchmarks.report
	$(VENV)/bin/python -m benchmarks.readme

# The demonstration needs the package alone, which is installed in half the time of the tools.
$(RUNTIME): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $(RUNTIME)

$(STAMP): $(RUNTIME)
	$(INSTALL) ".[dev,hub]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
