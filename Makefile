# One target per intention. `make` alone prints what there is.
#
#   PYTHON       interpreter that makes .venv, 3.11 or newer         make test PYTHON=python3.12
#   TORCH_INDEX  package index to take torch from before the rest    make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   SERVE        arguments of the server                             make serve SERVE='--port 9000'
#   T            what pytest runs                                    make pytest T=tests/core
#   OPS HOURS    how long a campaign lasts                           make test-core-nightly HOURS=8
#   SIM          arguments of the simulator                           make sim SIM='--seeds 0..9999'
#   NIGHT        parts of the night, those alone                     make nightly HOURS=2 NIGHT='core sim'
#   GPU SANITIZE arguments of benches.gpu and of its sanitizer        make gpu GPU=--plan
#   BUGS         planted bugs, those alone, and no table             make test-planted BUGS='DropFrees EpochIgnored'
#   SEED         where it begins; with LAYER and SEEDS, what alone   make test-core LAYER=facade SEED=17 SEEDS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
TORCH_INDEX ?=
SERVE ?= --host 127.0.0.1 --port 8000
T ?= tests
SIM ?= --hours 1 --jobs 2
GPU ?=
NIGHT ?=
SANITIZE ?=
VENV := .venv
BIN := $(VENV)/bin
# On a GPU machine there may be no .venv: any Python with torch and triton does.
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(CURDIR)/$(BIN)/python,$(PYTHON))
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
STAMPS := $(VENV)/stamps

# maturin sets the first of these; cargo gets them too, so that neither undoes the other's build of pyo3.
export PYO3_PYTHON := $(CURDIR)/$(BIN)/python
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

CAMPAIGN := cargo test --release --locked --features dsv4-core/forged -p dsv4-core --test suite -- \
	--exact campaign::every_operation_agrees_with_its_model --ignored --nocapture

RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

## ------------------------------------------------------------------ run

help: ## print this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

serve: build ## build, and serve the embedded demo model at http://127.0.0.1:8000/v1
	$(BIN)/python -m dsv4.serve demo $(SERVE)

build: $(STAMPS)/built ## build the core and install dsv4 into .venv, editable

## ------------------------------------------------------------------ test

test: cargo-test pytest ## run every test, Rust and Python

cargo-test: $(STAMPS)/venv ## run the tests of the Rust crates
	@if command -v cargo-nextest >/dev/null; \
	then cargo nextest run --workspace --release --locked --features dsv4-core/forged; \
	else cargo test --workspace --release --locked --features dsv4-core/forged --tests; fi
	cargo test --release --locked --doc -p dsv4-core

test-core: ## run 10^8 random operations of the core against its models, on all cores
	$(CAMPAIGN)

sim: $(STAMPS)/venv ## simulate workers, and pairs of them, under faults in virtual time (SIM='--hours 1 --jobs 2')
	cargo test --release --locked -p dsv4-core --test sim -- $(SIM)

search: $(STAMPS)/venv ## search every state of the ownership and room machines, about 10^8 (minutes, up to 9 GiB)
	cargo test --release --locked -p dsv4-core --test search -- --ignored --nocapture

test-core-nightly: ## the same with 10^10 (OPS=, HOURS=, SEED=)
	OPS=$${OPS:-1e10} $(CAMPAIGN)

test-planted: $(STAMPS)/venv ## plant each known bug and write down which test finds it (nightly)
	$(BIN)/python scripts/planted.py $(BUGS)

nightly: build ## all of the above and both checkers, in HOURS=8, with one table at the end (NIGHT='core asan' for some)
	$(BIN)/python scripts/nightly.py $${HOURS:-8} $(NIGHT)

asan: build $(STAMPS)/test ## run the core and its binding under AddressSanitizer and LeakSanitizer
	$(BIN)/python scripts/memory_check.py asan

valgrind: build $(STAMPS)/test ## run the binding under valgrind's memcheck
	$(BIN)/python scripts/memory_check.py valgrind

pytest: build $(STAMPS)/test ## run the Python tests (T=path for some of them)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(T)

check: build $(STAMPS)/test $(STAMPS)/lint ## lint and type-check everything, change nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=python $(BIN)/stubtest dsv4._core

format: $(STAMPS)/lint ## rewrite the sources as the formatters want them
	cargo fmt --all
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

bench: build $(STAMPS)/bench ## print the speed of the core, the model and the server on this CPU
	$(BIN)/python -m benches.run

gpu: ## check and time every kernel on this machine's H100 or H200 in nine minutes (GPU='--plan')
	scripts/gpu.sh -- $(GPU_PYTHON) -m benches.gpu $(GPU)

sanitize: ## run the kernel tests under compute-sanitizer on this machine's GPU (SANITIZE='--only mhc')
	scripts/gpu.sh -- $(GPU_PYTHON) -m benches.gpu.sanitize $(SANITIZE)

sizes: ## print the ten longest functions and files of each language
	@$(PYTHON) scripts/sizes.py

## ------------------------------------------------------------------ ship

wheel: $(STAMPS)/venv ## build dist/*.whl: every CPython from 3.11, any Linux from glibc 2.28
	$(PIP) 'maturin[zig]>=1.9.4,<2'
	rm -rf dist
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/maturin build --release --locked --zig --compatibility manylinux_2_28 --out dist

test-wheel: wheel ## install that wheel into a fresh environment and serve from it
	$(PYTHON) scripts/try_wheel.py dist/*.whl

clean: ## remove what was built, .venv included
	rm -rf $(VENV) dist target

## ------------------------------------------------------------------ what the targets need

$(STAMPS)/venv: 
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsv4 needs Python 3.11 or newer; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade 'pip>=25.1' 'maturin>=1.9.4,<2'
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/built: $(STAMPS)/venv pyproject.toml $(RUST)
	$(if $(TORCH_INDEX),$(PIP) 'torch>=2.11' --index-url $(TORCH_INDEX))
	$(BIN)/maturin develop --release --locked
	@touch $@

$(STAMPS)/test $(STAMPS)/lint $(STAMPS)/bench: $(STAMPS)/%: $(STAMPS)/venv pyproject.toml
	$(PIP) --group $*
	@touch $@

.PHONY: help serve build test cargo-test test-core test-core-nightly test-planted search sim nightly asan valgrind pytest check format bench gpu sanitize sizes wheel test-wheel clean
