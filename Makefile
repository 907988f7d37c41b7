# make train, make test: each makes .venv first when it is missing or older than pyproject.toml.
# ARGS are passed on: make train ARGS="--latent-dim 2", make test ARGS="-k handlers".

PYTHON ?= python3
BIN = .venv/bin
ARGS ?=

.PHONY: train test test-all lint types clean

train: .venv/ready
	$(BIN)/python -m pyro_vae.train --elbo trace $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest $(ARGS)

test-all: .venv/ready
	$(BIN)/python -m pytest -m "slow or not slow" $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check . $(ARGS)
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch .venv/ready

clean:
	rm -rf .venv dist build .pytest_cache .ruff_cache .mypy_cache
