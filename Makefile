# Heliograph. `make help` lists the commands.
.DEFAULT_GOAL := help
SHELL := /bin/bash
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
# The distribution's Python: built with profile-guided optimisation, as the peers' packages are built for speed.
BENCH := bench/.work/venv
RUN := $(UV) run --frozen --no-sync
# A file's tests stay together, in the order of collection.
PYTEST := $(RUN) pytest -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.uv/bin/uv:
	@command -v uv >/dev/null || (python3 -m venv .uv && .uv/bin/pip install -q uv)

setup: .uv/bin/uv ## Install the locked environment for running
	@$(UV) sync --frozen --quiet --no-dev --extra embedded

setup-dev: .uv/bin/uv ## Install the locked environment for development
	@$(UV) sync --frozen --quiet --all-extras

setup-infra: .uv/bin/uv ## Install what `pulumi up` needs, into .venv
	@$(UV) sync --frozen --quiet --no-dev --extra infra

setup-ops: .uv/bin/uv ## Install what `heliograph ops` needs besides, into .venv
	@$(UV) sync --frozen --quiet --no-dev --extra ops

up: setup ## Run everything on this machine (ARGS="--port 9000 …")
	@exec .venv/bin/heliograph up $(ARGS)

check: setup-dev ## Format, lint, types, import layers, unit tests
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) lint-imports
	@cd playbooks && PATH="$(CURDIR)/.venv/bin:$$PATH" ansible-lint --offline --strict -q
	$(PYTEST) tests/unit -q

test: setup-dev ## Everything that this machine can run, with coverage
	$(PYTEST) tests --cov --cov-report=term --durations=30 --durations-min=5

BASE ?= docker.io/library/python:3.13-slim-trixie
images: setup-infra ## Build the control plane's image on a Debian with Python (BASE=name@sha256:…)
	@podman image exists $(BASE) || podman pull --quiet $(BASE)
	@mkdir -p build/images
	@.venv/bin/python -m infra.images controlplane --base $(BASE) --output build/images > build/images/new.json
	@mv build/images/new.json build/images/controlplane.json && cat build/images/controlplane.json

preview: setup-dev ## `pulumi preview` of a sample region, without hosts
	@$(RUN) python -m tests.lab.project

lab-up: setup-dev ## Two datacenters on this machine, as root (ARGS=fra: only one)
	@$(RUN) python -m tests.lab up $(ARGS)

lab-down: ## End them
	@$(RUN) python -m tests.lab down

lab-doctor: setup-dev ## What this machine lacks for the lab
	@$(RUN) python -m tests.lab.doctor

format: setup-dev ## Format the code
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

openapi: setup-dev ## Write docs/openapi.json
	$(RUN) python -m controlplane.api > docs/openapi.json

bench: .uv/bin/uv ## Heliograph beside Kannel and Jasmin (ARGS="--rounds 1 …"); installs them
	bench/prepare
	@UV_PROJECT_ENVIRONMENT=$(BENCH) $(UV) sync --frozen --quiet --all-extras --python $(firstword $(wildcard /usr/bin/python3) python3)
	@$(UV) pip install --quiet --python $(BENCH)/bin/python granian vowpalwabbit==9.11.9 bayesianbandits==1.5.0 scikit-learn==1.9.1
	$(BENCH)/bin/python -m bench $(ARGS)

clean: ## Remove what can be made again (never data/)
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* build dist

.PHONY: help setup setup-dev setup-infra setup-ops up check test images preview lab-up lab-down lab-doctor format openapi bench clean
