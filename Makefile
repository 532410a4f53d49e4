# make demo    the whole thing on real packaged data, on a CPU
# make test    every test, fast and slow
# make check   format, lint, types, import arrows
# make bench   tables of rates, against a plain loop and the machine's limit; DEVICE=cuda on a GPU
# make gpu-check  what only a GPU can show, within 8 minutes; DEVICE=cpu rehearses it without one
# make bench-tune  the text encoder with passes of several sizes and on each number of threads
#
# Each makes .venv when it is missing and reuses it when not. PIP_ARGS is passed on to pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEVICE_EXTRAS := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu,fast-cpu)
SEEDS ?= 0
DEVICE ?= cpu

.PHONY: demo test test-fast test-slow bench bench-tune gpu-check check format venv clean

demo: $(VENV)/.demo-ready
	$(BIN)/cit demo --seeds $(SEEDS)

test: test-fast test-slow

test-fast: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m "not slow and not gpu"

test-slow: $(VENV)/.dev-ready
	$(BIN)/cit demo --fetch-only
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 8 --dist worksteal -m "slow and not gpu"

check: $(VENV)/.dev-ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_import_arrows.py tests/test_layout.py

bench: $(VENV)/.dev-ready
	$(BIN)/python -m scripts.bench.text_encoder --device $(DEVICE)
	$(BIN)/python -m scripts.bench.curation --device $(DEVICE)
	$(BIN)/python -m scripts.bench.cascade --device $(DEVICE) --repeats 1

bench-tune: $(VENV)/.dev-ready
	$(BIN)/python -m scripts.bench.text_encoder --tune --captions 4096 --device $(DEVICE)

gpu-check: DEVICE = cuda
gpu-check: $(VENV)/.dev-ready
	$(BIN)/python -m scripts.gpu_check --device $(DEVICE) --json gpu-check.json \
	  $(if $(filter cpu,$(DEVICE)),--quick)

format: $(VENV)/.dev-ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

venv: $(VENV)/.dev-ready

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "cit needs Python 3.11 or newer; say which with: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python's venv module is missing; on Debian: apt-get install python3-venv"; exit 2; }

$(VENV)/.demo-ready: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_ARGS) -c constraints.txt -e ".[$(DEVICE_EXTRAS),demo]"
	@touch $@

$(VENV)/.dev-ready: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install $(PIP_ARGS) -c constraints.txt -e ".[$(DEVICE_EXTRAS),demo,dev]"
	@touch $@ $(VENV)/.demo-ready

clean:
	rm -rf $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
