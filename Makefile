# make demo | test | slurm-test | lint | chaos | gpu-bench | bench-peers | clean. Everything is installed into .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
CHAOS := chaos
KILLS := 200

.PHONY: demo test slurm-test lint ci chaos gpu-bench bench-peers clean

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

# The batch templates on a real Slurm on this machine; root installs it. Ended from outside, it still leaves nothing.
slurm-test: $(INSTALLED)
	tests/slurm/install.sh
	box=$$(mktemp -d)/box; trap 'tests/slurm/cluster.sh down "$$box"; rmdir "$${box%/box}"' EXIT; trap 'exit 1' INT TERM; SLURM_BOX="$$box" $(BIN)/python -m pytest -m slurm tests/slurm

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

ci: lint test slurm-test

# Goes on where it was stopped; about an hour for 200 kills on 2 cores.
chaos: $(INSTALLED)
	$(BIN)/python benchmarks/chaos.py --out $(CHAOS) --kills $(KILLS) --jobs 2

gpu-bench: $(INSTALLED)
	PYTHON=$(BIN)/python bash benchmarks/gpu.sh

# Other loaders, for benchmarks/loader.py: an environment that sees what .venv has (torch alone is 6 GB) and adds the rest.
# One by one, so that a loader that cannot be installed stops no other; the benchmark's tables then say that it is missing.
bench-peers: $(INSTALLED)
	$(BIN)/python -m venv $(PEERS)
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(PEERS)/bin/python $(PURELIB))/project.pth"
	grep -v '^#' benchmarks/requirements-peers.txt | while read -r peer; do $(PEERS)/bin/pip install --quiet "$$peer" || echo "could not install $$peer"; done
	grep -v '^#' benchmarks/requirements-peers-no-deps.txt | while read -r peer; do $(PEERS)/bin/pip install --quiet --no-deps "$$peer" || echo "could not install $$peer"; done

clean:
	rm -rf $(VENV) $(PEERS) $(DEMO) $(CHAOS)
