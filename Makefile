# Dunlin. `make up` runs the main job, `make test` passes the tests; both install what they need first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
UV ?= $(shell command -v uv || echo .tools/bin/uv)
RUN := $(UV) run --frozen --no-sync
NODES ?= 2
LAB ?= dunlin
# The order of the tests, the cases that Hypothesis makes, the faults of chaos: the same every time; SEED=$$RANDOM looks elsewhere.
SEED ?= 1
# The tests of one lab beside all others (tests/parallel.py); 0: one after the other.
WORKERS ?= 2
APT := build-essential python3-venv openvswitch-switch openvswitch-switch-dpdk libjemalloc2 iproute2 iputils-ping \
       ethtool procps curl openssl kubernetes-client:kubectl

.PHONY: help setup apt uv sync build check test images compose-test containers audit fuzz soak bench up down golden-update docs

help: ## This list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[36m%-14s\033[0m %s\n", $$1, $$2}'

setup: apt uv sync build ## Install everything: Debian packages, uv, Python packages, the CNI executable.

apt:
	@tools/apt-install $(APT)

uv:
	@tools/install-uv

sync: uv
	@UV_COMPILE_BYTECODE=1 $(UV) sync --frozen --quiet

build: sync ## The CNI executable, and what ovs-vswitchd preloads.
	@$(MAKE) --no-print-directory -s -C services/agent/cni
	@$(MAKE) --no-print-directory -s -C services/agent/ovs

check: sync ## Format, lint, types, import contracts, tidiness.
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy dunlin services/*/dunlin_* lab/dunlin_lab tests bench
	$(RUN) lint-imports
	$(RUN) pytest -q tests/test_tidy.py

test: setup ## Every test that this machine can run; a tier that is skipped says why. SEED=N: another order, other cases and faults.
	DUNLIN_TEST_CHAOS_SEED=$${DUNLIN_TEST_CHAOS_SEED:-$(SEED)} $(RUN) pytest -n $(WORKERS) --durations=10 --randomly-seed=$(SEED) --hypothesis-seed=$(SEED)

images: sync ## Container images: base images where there is no registry, then all of ours.
	@tools/apt-install docker.io debootstrap
	tools/with-docker bash -c 'tools/base-images && tools/images'

compose-test: sync ## The end-to-end test of compose/, on an engine of its own; needs `make images`.
	@tools/install-compose
	tools/with-docker $(RUN) pytest -q tests/e2e/test_compose.py tests/e2e/test_compose_official.py

containers: sync ## Both: every image, and the tests of compose/; says so where no engine starts.
	tools/containers

audit: uv ## Known weaknesses of the packages in uv.lock; asks the database of OSV.
	@$(UV) audit --frozen --no-dev || { code=$$?; [ $$code = 1 ] || echo "dunlin: nothing was audited: the database was not reached" >&2; exit $$code; }

fuzz: setup ## Every parser that faces another party, guided by coverage; FUZZ_S seconds each (60).
	@tools/fuzz $(or $(FUZZ_S),60)

soak: setup ## Failover and chaos: minutes of faults under load.
	DUNLIN_TEST_OUTAGE_S=60 DUNLIN_TEST_API_OUTAGE_S=300 $(RUN) pytest -m soak tests/e2e
	DUNLIN_TEST_CHAOS_S=600 $(RUN) pytest tests/e2e/test_chaos.py

bench: setup ## Ratios, measured side by side; BENCH="NAME… --quick --json FILE" chooses.
	@tools/apt-install iperf3 containernetworking-plugins iptables nftables
	$(RUN) python -m bench $(BENCH)

up: setup ## A cluster in a box, with a small shop.
	@$(RUN) dunlin lab up --nodes $(NODES) --name $(LAB)

down: ## Remove it.
	@$(RUN) dunlin lab down --name $(LAB)

golden-update: sync ## Write the golden files anew; read the diff.
	$(RUN) pytest -q tests/golden --golden-update

docs: sync ## Pages generated from code.
	$(RUN) python -m tools.docs
