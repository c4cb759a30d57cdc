# Two commands do all the set-up on a bare Debian machine: `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
ARGS ?=
# What `make run` installs beside the daemon: `probes` (torch), or nothing.
EXTRAS ?= probes
comma := ,
EXTRAS_NAME := $(or $(subst $(comma),-,$(strip $(EXTRAS))),nothing)
# Most tests wait for a daemon's ticks: more of them than cores run well together.
WORKERS ?= 4

# What the tests need beside Python: a compiler for the fake driver library, a real Prometheus and
# Alertmanager, a real browser, a container engine with a base made on this machine.
APT_TEST := gcc libc6-dev prometheus prometheus-alertmanager chromium systemd strace util-linux podman runc netavark aardvark-dns iptables iproute2 debootstrap rpm dpkg
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); }
	@$(PIP) install --upgrade pip

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@deploy/make/install.sh $(BIN)/python probes
	@touch $@

# Installed with these extras alone.
$(VENV)/.installed-with-$(EXTRAS_NAME): $(BIN)/python pyproject.toml constraints.txt
	@deploy/make/install.sh $(BIN)/python '$(EXTRAS)'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --constraint constraints.txt --group dev
	@touch $@

.PHONY: run
run: $(if $(filter probes,$(EXTRAS)),$(VENV)/.installed,$(VENV)/.installed-with-$(EXTRAS_NAME)) ## install into .venv and start the daemon on :9907 (EXTRAS= without probes, ARGS="--web.listen-address …")
	@deploy/make/first-steps.sh $(BIN)/python $(ARGS) & \
	exec $(BIN)/flopwatch serve $(ARGS)

.PHONY: demo
demo: apt-demo $(BIN)/flopwatch ## simulated GPUs with Prometheus, and where to load the dashboards (ARGS="--scenario …")
	@deploy/make/demo.sh $(BIN) $(ARGS)

$(BIN)/flopwatch: $(BIN)/python pyproject.toml constraints.txt
	@[ -e $@ ] || deploy/make/install.sh $(BIN)/python ''

.PHONY: apt-demo
apt-demo:
	@command -v prometheus >/dev/null || { echo "Installing Prometheus (Debian package, a download of about 20 MB)."; \
	  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends prometheus; }

.PHONY: install-dev
install-dev: $(VENV)/.installed-dev ## install what development needs into .venv

.PHONY: apt-test
apt-test:
	@missing=$$(for package in $(APT_TEST); do dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $$missing; fi

.PHONY: test
test: apt-test lint type check-generated rules ## install what tests need and run every check but the slow ones
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m 'not slow' $(ARGS)
	$(BIN)/python -m deploy.supply_chain.audit

.PHONY: test-slow
test-slow: apt-test $(VENV)/.installed-dev ## the long matrices, scenarios and soaks
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m slow $(ARGS)

.PHONY: soak
soak: $(VENV)/.installed-dev ## the daemon for 20 minutes while everything around it churns (before a release: MINUTES=60)
	$(BIN)/python -m benchmarks.soak --days 0 --daemon-minutes $(or $(MINUTES),20)

.PHONY: test-engines
test-engines: $(VENV)/.installed-dev ## compare tokens, FLOPs and bytes with real engines (downloads vLLM, builds llama.cpp)
	$(BIN)/python -m benchmarks.engine_accuracy --document $(ARGS)

.PHONY: test-host
test-host: apt-test $(VENV)/.installed-dev ## containers with systemd, Slurm and the packages, by docs/install.md
	$(BIN)/python -m pytest -m slow tests/deploy/host $(ARGS)

.PHONY: release
release: apt-test $(VENV)/.installed-dev ## build all that a release is but the images into dist/, with checksums
	$(BIN)/python -m deploy.packages.build dist

.PHONY: lint
lint: $(VENV)/.installed-dev ## ruff: style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: type
type: $(VENV)/.installed-dev ## mypy --strict
	$(BIN)/mypy

.PHONY: generate
generate: $(VENV)/.installed-dev ## write the generated pages and dashboards anew
	$(BIN)/flopwatch metrics --markdown > docs/metrics.md
	$(BIN)/flopwatch config --markdown > docs/configuration.md
	$(BIN)/python -c 'from exporter.inference.engines import write_table; write_table()'
	$(BIN)/python -m benchmarks.support_matrix > docs/support-matrix.md
	$(BIN)/python -m benchmarks.gpu_acceptance --document
	$(BIN)/python -m mixin.build
	$(BIN)/python -m grafana.build
	$(BIN)/python deploy/helm/sync.py

.PHONY: check-generated
check-generated: $(VENV)/.installed-dev ## fail when a generated page is stale
	@$(BIN)/flopwatch metrics --markdown | diff -u docs/metrics.md - || { echo 'docs/metrics.md is stale: make generate'; exit 1; }
	@$(BIN)/python -m mixin.build --check
	@$(BIN)/flopwatch config --markdown | diff -u docs/configuration.md - || { echo 'docs/configuration.md is stale: make generate'; exit 1; }

.PHONY: rules
rules: apt-test ## promtool: the recording and alerting rules
	promtool check rules deploy/prometheus/rules/*.yml deploy/prometheus/alerts/*.yml

.PHONY: benchmark
benchmark: $(VENV)/.installed-dev apt-test ## print the figures of docs/performance.md
	$(BIN)/python -m benchmarks.cost

.PHONY: test-levers
test-levers: $(VENV)/.installed-dev ## compare predictions of levers with a simulated engine, published figures and llama.cpp
	$(BIN)/python -m benchmarks.levers $(ARGS)

.PHONY: audit
audit: $(VENV)/.installed-dev ## pip-audit over the locked requirements
	$(BIN)/python -m deploy.supply_chain.audit

.PHONY: sbom
sbom: $(VENV)/.installed-dev ## the software bill of materials of the full container
	@mkdir -p dist
	$(BIN)/python -m deploy.supply_chain.sbom full > dist/sbom.json

.PHONY: fuzz
fuzz: $(VENV)/.installed-dev ## half an hour of malformed input for every parser
	$(BIN)/python -m tests.fuzz --minutes 30

.PHONY: clean
clean: ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
