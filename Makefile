# The two commands of the README: `make quickstart` and `make test`. No uv or poetry: see CONTRIBUTING.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MILVUS_VENV := .venv-milvus

.PHONY: quickstart test examples ci-tests slow milvus soak torture check docs coverage package install clean

quickstart: $(INSTALLED)  ## End-to-end demo on MovieLens: fit, publish, evaluate, recall
	$(BIN)/vecall quickstart

# Two workers of one thread each: tiny fits with more threads than cores wait for one another. Each begins with a half of
# the files, so that most fixtures of a module are set up once, and helps the other at the end.
PYTEST_WORKERS = -n 2 --dist worksteal
test: $(INSTALLED)  ## The test suite
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_WORKERS)

examples: $(INSTALLED)  ## Examples, notebooks, snippets of README and documents, benchmarks, runs from end to end
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_WORKERS) -m examples

ci-tests: $(INSTALLED)  ## `test` and `examples` together, which collects the tests once: what CI runs
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_WORKERS) \
		-m 'not slow and not torture and not milvus'

slow: $(INSTALLED)  ## Tests that take minutes
	$(BIN)/python -m pytest -m slow

# The server has an environment of its own, and the tests run with it in a network namespace of their own.
# TESTS=tests/index/milvus leaves out what is elsewhere.
milvus: $(VENV)/.milvus_installed  ## Tests with a real Milvus server
	VECALL_MILVUS_SERVER_PYTHON=$(MILVUS_VENV)/bin/python OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 timeout 600 \
		$(BIN)/python tests/support/network_namespace.py $(BIN)/python -m pytest -m milvus $(TESTS)

$(VENV)/.milvus_installed: $(INSTALLED) tests/support/milvus_server.txt
	test -x $(MILVUS_VENV)/bin/python || $(PYTHON) -m venv $(MILVUS_VENV)
	$(MILVUS_VENV)/bin/python -m pip install --quiet --requirement tests/support/milvus_server.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[milvus]'
	touch $@

SOAK = $(BIN)/python benchmarks/soak.py --items 30_000 --switch-seconds 6 --deadline-ms 2000
soak: $(INSTALLED)  ## Mixed load on a service that switches releases: a minute, then half a minute with two workers
	$(SOAK) --seconds 60 --out build/soak.json
	$(SOAK) --seconds 30 --workers 2 --out build/soak-2.json

# CYCLES=100 and SEED=1 may be given in the environment.
torture: $(INSTALLED)  ## A thousand writers killed, and a disk that fails at every call
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 timeout 3600 $(BIN)/python -m pytest -s -m 'slow or torture' \
		-k 'not test_200_killed' -o log_cli=true -o log_cli_level=INFO \
		tests/live/test_crash_recovery.py tests/live/test_store_faults.py tests/live/test_disk_faults.py

check: $(INSTALLED)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## The documentation site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

coverage: $(INSTALLED)  ## The tests with a report of the lines that they do not reach; no threshold
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --cov=vecall --cov-report=term:skip-covered

package: $(INSTALLED)  ## Wheel and source distribution, into dist/
	$(BIN)/python -m build

install: $(INSTALLED)  ## The environment alone

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vecall needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,serve,dev,docs]'
	touch $@

clean:
	rm -rf $(VENV) $(MILVUS_VENV) quickstart build dist *.egg-info
