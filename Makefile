# Everything from a fresh clone: `make demo`, `make test`. Needs Python 3.11 or 3.12 and the apt packages that the README names.

# The first interpreter that suits constraints.txt and can make virtual environments.
SUITS := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c '$(SUITS)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready

export SDL_VIDEODRIVER := dummy
# Compiled modules are kept even where the environment forbids it: the tests start thousands of processes.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-lerobot test-openpi test-webxr franka-sim test-franka lint check format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## the virtual environment .venv with the tested set of packages

$(READY): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(SUITS)' 2>/dev/null || { echo "'$(PYTHON)' is not Python 3.11 or 3.12 with venv;" \
		"install python3-venv or name another: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[sim,dev]'
	touch $@

demo: $(READY)  ## collect, train, evaluate and deploy; writes runs/demo/report.html
	$(BIN)/robolearn demo

# Tests wait for a third of their time, so that three workers fill two cores; each needs up to 4 GB.
PYTEST_WORKERS := -n 3 --dist worksteal

test: lint  ## lint, types and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_WORKERS) --durations 50

LEROBOT := .venv-lerobot
PYTHON312 ?= $(shell for p in python3.12 $(HOME)/.pyenv/versions/3.12.*/bin/python3.12; do \
	$$p -c '' 2>/dev/null && echo $$p && break; done)

test-lerobot: $(READY) $(LEROBOT)/.ready  ## LeRobot itself loads our exports, drives our twins and computes what our SmolVLA does; needs Python 3.12 and 6 GB, and is no part of CI
	rm -rf build/lerobot && mkdir -p build/lerobot
	$(BIN)/python tests/lerobot/export.py build/lerobot
	HF_HOME=$(CURDIR)/build/lerobot/.hub HF_HUB_OFFLINE=1 $(LEROBOT)/bin/python tests/lerobot/check.py build/lerobot
	PYTHONPATH=data:hardware $(LEROBOT)/bin/python tests/lerobot/devices.py
	ROBOLEARN_LEROBOT_PYTHON=$(CURDIR)/$(LEROBOT)/bin/python $(BIN)/python -m pytest -rP tests/test_vla_lerobot.py

$(LEROBOT)/.ready:
	"$(PYTHON312)" -m venv $(LEROBOT)
	$(LEROBOT)/bin/python -m pip install 'lerobot[dataset,feetech,smolvla]==0.6.1' pydantic
	touch $@

OPENPI := .venv-openpi

test-openpi: $(READY) $(OPENPI)/.ready  ## openpi's own client against our server; no part of CI
	ROBOLEARN_OPENPI_PYTHON=$(CURDIR)/$(OPENPI)/bin/python $(BIN)/python -m pytest tests/test_deploy_wire_openpi.py

$(OPENPI)/.ready:
	"$(PYTHON)" -m venv $(OPENPI)
	$(OPENPI)/bin/python -m pip install 'openpi-client==0.1.2' typing_extensions
	touch $@

test-webxr: $(READY)  ## a VR controller in the page, by an emulated headset that npm fetches
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/test_deploy_page_webxr.py

FRANKA_SIM := .venv-franka-sim

franka-sim: $(FRANKA_SIM)/.ready  ## the environment of the Franka twin, which needs MuJoCo 4

test-franka: $(READY) $(FRANKA_SIM)/.ready  ## the Franka driver against franky-sim; no part of CI
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_hardware_franka.py

$(FRANKA_SIM)/.ready:
	"$(PYTHON)" -m venv $(FRANKA_SIM)
	$(FRANKA_SIM)/bin/python -m pip install 'franky-sim==1.0.4'
	touch $@

check: lint  ## lint, types and the tests that take less than ten seconds
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_WORKERS) -m 'not slow'

lint: $(READY)  ## style and types
	$(BIN)/ruff check --no-cache
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(READY)  ## bring the code into the style that lint checks
	$(BIN)/ruff check --no-cache --fix
	$(BIN)/ruff format

clean:  ## remove the virtual environment, caches and built wheels; runs/ stays
	rm -rf .venv .venv-lerobot .venv-franka-sim .venv-openpi build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
