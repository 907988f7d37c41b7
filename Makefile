# make train, make test: each makes .venv first when it is missing or older than pyproject.toml.
# ARGS are passed on: make train ARGS="--latent-dim 2", make test ARGS="-k handlers", make bench ARGS="--quick".
# Another interpreter, in an environment of its own: make test PYTHON=python3.12 VENV=.venv-3.12

PYTHON ?= python3
VENV = .venv
BIN = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
ARGS ?=

.PHONY: train test test-all lint types bench clean

train: $(VENV)/ready
	$(BIN)/python -m pyro_vae.train --elbo trace $(ARGS)

test: $(VENV)/ready
	$(BIN)/python -m pytest $(ARGS)

test-all: $(VENV)/ready
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check . $(ARGS)
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pylint pyro_vae
	! $(BIN)/vulture | grep ^pyro_vae/  # tests and examples count as uses

types: $(VENV)/ready
	$(BIN)/mypy $(ARGS)

bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,bench]"
	$(BIN)/python -m benchmarks.throughput $(ARGS)

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(VENV)/ready

clean:
	rm -rf .venv .venv-3.* dist build .pytest_cache .ruff_cache .mypy_cache
