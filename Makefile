# Every target sets up .venv by itself, once, and again only when pyproject.toml has changed.
PYTHON ?= python3
CONFIG ?= bernoulli.yaml
DEVICE ?= cpu
READY  := .venv/.ready
VAE    := .venv/bin/vae

.PHONY: train test coverage docs stress package fuzz bench lint format tensorboard clean help
.DEFAULT_GOAL := help

train: $(READY)  ## train a VAE on MNIST (CONFIG=bernoulli.yaml) and draw samples from it
	$(VAE) train --config $(CONFIG)

test: lint  ## lint, then run the tests, two files at a time
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile

coverage: $(READY)  ## the tests, and which lines they miss
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile --cov=vaecli --cov-report=term:skip-covered

docs: $(READY)  ## build the documentation into site/, its notebooks run, every link within it checked
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	.venv/bin/python -m sphinx --fail-on-warning --keep-going --quiet -d site/.doctrees docs site
	@rm -rf jupyter_execute

stress: $(READY)  ## the tests that take long: fail at every write of a run, kill it at random, freeze parts of Ray
	.venv/bin/python -m pytest --stress

package: $(READY)  ## build the wheel and the sdist into dist/, install each in an empty environment, and train from there
	.venv/bin/python scripts/check_package.py

fuzz: $(READY)  ## 10,000 damaged inputs of each kind
	.venv/bin/python -m pytest --hypothesis-profile=fuzz tests/test_fuzz.py

bench: $(READY)  ## time an epoch beside its floor and its peers (DEVICE=cpu)
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	.venv/bin/python benchmarks/bench.py --device $(DEVICE)

lint: $(READY)  ## check format, style and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

format: $(READY)  ## format the code and mend what can be mended by itself
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

tensorboard: $(READY)  ## watch the curves of all runs in a browser
	.venv/bin/tensorboard --logdir runs

clean:  ## remove the environment and the caches (runs/ is kept)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage build dist site docs/reference

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*  ## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vaecli needs Python 3.11 or later; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
