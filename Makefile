# The front door: everything that is done with this project goes through a target here.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
PYTHON ?= python3
ASSETS := $(PYTHON) scripts/assets.py

.PHONY: help setup run serve test check bench verify-model fmt clean-assets \
        need-cargo need-cc need-python

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: need-python ## Fetch ONNX Runtime and build the model, into .refrain/
	@$(ASSETS) --only runtime --only model

run: setup need-cargo need-cc ## Build, start the sidecar on the embedded engine, replay the support FAQ
	$(CARGO) run --release --locked --package support-faq

serve: setup need-cargo need-cc ## Build and start the sidecar
	$(CARGO) build --release --locked
	target/release/refrain serve

test: need-python need-cargo need-cc ## Run all tests, against a real Redis and a real Python client too
	@$(ASSETS)
	@$(PYTHON) scripts/environment.py test > /dev/null
	$(CARGO) test --locked --no-fail-fast

check: need-python need-cargo need-cc ## Formatting, lints, documentation, scripts, installed assets
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked
	bash -n .ci/run
	@for script in scripts/*.py; do \
	  $(PYTHON) -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$$script"; \
	done
	@if compgen -G '.refrain/assets/.stamps/*.json' > /dev/null; then $(ASSETS) --check; fi

bench: need-python need-cargo need-cc ## Run the benchmarks; CORPUS=path (JSON lines with a text) measures recall too
	@$(ASSETS)
	$(CARGO) bench --locked
	$(if $(CORPUS),$(CARGO) bench --locked --bench recall -- --corpus '$(CORPUS)')

verify-model: setup ## Compare the exported model with an independent forward pass
	@python="$$($(PYTHON) scripts/environment.py export)"; "$$python" scripts/verify_onnx.py

fmt: need-cargo ## Format the Rust code
	$(CARGO) fmt

clean-assets: ## Remove what setup and test put into .refrain/
	rm -rf .refrain/assets .refrain/venv .refrain/venv-test

need-cargo:
	@command -v $(CARGO) > /dev/null || { \
	  echo "error: cargo is missing: install Rust 1.92 or newer, see https://rustup.rs" >&2; exit 1; }

# Some dependencies bring C code, and linking goes through the C compiler.
need-cc:
	@command -v cc > /dev/null || { \
	  echo "error: a C compiler is missing: apt-get install build-essential" >&2; exit 1; }

need-python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "error: Python 3.11 or newer is missing: apt-get install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, and this is $$($(PYTHON) --version)" >&2; exit 1; }
