# make demo | test | lint | gpu-bench | clean. Everything is installed into .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint ci gpu-bench clean

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[test,lint,deepspeed]'
	touch $@

demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/python shards/synthesize.py --out $(DEMO)/data --train 300 --test 60 --seed 7 --workers 2
	$(BIN)/python shards/build.py --source $(DEMO)/data --metadata $(DEMO)/data/metadata.csv --out $(DEMO)/shards --frames raw --size 60x125 --workers 2
	$(BIN)/python shards/verify.py $(DEMO)/shards
	$(BIN)/python launch/train.py --config configs/demo.yaml data.shards=$(DEMO)/shards run.dir=$(DEMO)/run
	$(BIN)/python launch/evaluate.py $(DEMO)/run --split test
	$(BIN)/python launch/report.py $(DEMO)/run

test: $(INSTALLED)
	$(BIN)/python -m pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ci: lint test

gpu-bench: $(INSTALLED)
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh

clean:
	rm -rf $(VENV) $(DEMO)
