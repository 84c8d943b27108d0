# Two commands set everything up on a fresh machine: `make run` and `make test`.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: help run test test-slow chaos check format bench experiments clean

help: ## Show the commands.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# torch first: with its pinned version installed, nothing pulls a larger build of it.
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(sed -n 's/^  "\(torch==[^"]*\)",/\1/p' pyproject.toml)"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

run: $(VENV)/installed ## Simulate four synthetic hospitals with Flower and write a report.
	$(BIN)/multimix-sim flower --hold-out phantom-d --rounds 8 --local-steps 20 -c phantom-patients=100 -c title="Four synthetic hospitals"

test: $(VENV)/installed ## Run the tests that take less than 10 minutes, in two processes (JOBS=n for more).
	$(BIN)/python -m pytest -q -m "not slow and not chaos" --durations 15 --numprocesses $(JOBS) --dist loadfile

chaos: $(VENV)/installed ## Kill processes and break networks: an hour.
	$(BIN)/python -m pytest -q -m chaos

test-slow: $(VENV)/installed ## Run the slow tests.
	$(BIN)/python -m pytest -q -m slow --durations 15

check: $(VENV)/installed ## Lint, format, types, import layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/installed ## Measure speed and memory into benchmarks/results.json.
	$(BIN)/python -m benchmarks

SCALE ?= cpu
MULTIMIX_DATA ?= ../shared/data
experiments: $(VENV)/installed ## Train the paper's and the hospitals' tables, hours (SCALE=smoke: minutes), and write README and docs.
	for name in ablation paper federated scale; do \
	  $(BIN)/multimix-sim experiment $$name --scale $(SCALE) --data $(MULTIMIX_DATA) --publish || exit; \
	done

clean: ## Remove what was built and cached, not runs/.
	rm -rf $(VENV) .multimix *.egg-info .pytest_cache .mypy_cache .ruff_cache
