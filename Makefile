# Romancy: what one types. `make help` lists all. Everything is installed into .venv and ~/.cache/romancy.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# The newest fit interpreter: $PYTHON, or what is on PATH, or what pyenv has (which is on no PATH).
FOUND_PYTHON = $$(tools/find-python)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

demo: $(STAMP) ## The main job: apply a WorkflowRun, kill the processes that execute it, see it end
	@$(PY) -m tools.demo

check: $(STAMP) ## Format, lint, types, imports, quick tests: about a minute
	@$(MAKE) --no-print-directory lint
	@$(PY) -m pytest -q tests/model tests/sdk tests/replay -k "not prefix_of_a_history"

lint: $(STAMP)
	@$(VENV)/bin/ruff format --check operator tests tools workflows bench
	@$(VENV)/bin/ruff check operator tests tools workflows bench
	@$(VENV)/bin/mypy
	@$(VENV)/bin/pyright
	@$(VENV)/bin/lint-imports
	@$(PY) -m romancy.control.crds --check
	@$(PY) -m tools.reference --check

test: lint kube-bin ## Everything: checks, PostgreSQL, a control plane, real processes that are killed
	@$(PY) -m pytest -m "not pods"

sim: $(STAMP) ## Simulate: make sim SEEDS=0:100000 (JOBS=2); a seed that fails is printed
	@PYTHONHASHSEED=0 PYTHONPATH=operator:. $(PY) -m tests.simulation --seeds $(or $(SEEDS),0:2000) --jobs $(or $(JOBS),2)

test-pods: $(STAMP) ## Real pods on this machine: image, chart, kubelet; needs root, containerd and buildah (it says what is missing)
	@$(PY) -m pytest tests/pods -s

bench: kube-bin ## Times beside their targets: throughput, timers, recovery; they fail nothing
	@PYTHONHASHSEED=0 $(PY) -m bench $(BENCH)

format: $(STAMP) ## Format and mend what can be mended
	@$(VENV)/bin/ruff check -q --fix operator tests tools workflows bench; $(VENV)/bin/ruff format operator tests tools workflows bench

generate: $(STAMP) ## Write crds/ and docs/reference anew from the code
	@$(PY) -m romancy.control.crds --write
	@$(PY) -m tools.reference --write

kube-bin: $(STAMP) ## Build etcd and kube-apiserver once (about 4 minutes on 2 cores)
	@$(PY) -m tests.controlplane build

image: ## Build the image romancy:VERSION by docker or buildah (PYTHON_IMAGE=... for another base; =local makes one here)
	@tools/image

kind-up: ## A kind cluster on this machine (needs docker and kind)
	@kind get clusters | grep -qx romancy || kind create cluster --config kind-config.yaml

kind-demo: kind-up image ## The chart and a run on that cluster
	@kind load docker-image romancy:$(VERSION) --name romancy
	@helm upgrade --install romancy charts/romancy --kube-context kind-romancy -n romancy --create-namespace --wait --set demo.enabled=true
	@kubectl --context kind-romancy -n romancy apply -f workflows/onboarding.yaml
	@kubectl --context kind-romancy -n romancy wait --for=condition=Completed --timeout=60s wfr/onboarding-1
	@kubectl --context kind-romancy -n romancy get wfr,workflowengine

wheel: $(STAMP) ## Build dist/*.whl
	@$(PY) -m build --wheel --no-isolation

requirements: $(STAMP) ## Pin all dependencies anew, with hashes
	@$(PY) -m uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --all-extras --group test -o requirements.txt pyproject.toml
	@$(PY) -m uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url -o requirements-run.txt pyproject.toml
	@$(PY) -m uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url -o requirements-build.txt --group build

clean: ## Remove what was built here (not the cache)
	@rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(STAMP): pyproject.toml requirements.txt
	@python=$(FOUND_PYTHON) || exit 1; \
	echo "installing into $(VENV) with $$($$python --version)"; \
	test -x $(PY) || $$python -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.txt
	@$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: bench sim help image demo check lint test format generate kube-bin wheel requirements clean test-pods kind-up kind-demo
