# Every job of the kit. `make` alone prints this help, generated from the lines below.
RUN     ?= demo
CONFIG  ?=
BASE    ?=
DATA    ?=
PYTHON  ?= python3
VENV    ?= .venv
ENGINE  ?= docker
DOCKER  ?= $(ENGINE)
KORMED  := $(VENV)/bin/kormed
READY   := $(VENV)/.ready
MODEL_DIR ?= runs/$(RUN)/gguf
IMAGE   ?= kormed-edge
TYPE    ?= Q4_K_M
KEY     ?= kormed.key
BUNDLE_VERSION ?= 1
VERSION  = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' kormed_edge/__init__.py)
COMMIT   = $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
IMAGE_BUILD = DOCKER_BUILDKIT=1 $(DOCKER) build $(if $(findstring podman,$(DOCKER)),--format=docker) \
           $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
           --build-arg VERSION=$(VERSION) --build-arg KORMED_COMMIT=$(COMMIT) $(BUILD_ARGS)
OPTIONS  = --run $(RUN) $(if $(CONFIG),--config $(CONFIG)) \
           $(if $(BASE),--set base=$(BASE)) $(if $(DATA),--set data.source=$(DATA))

.DEFAULT_GOAL := help
.PHONY: help demo data train export eval verify serve doctor test lint docs samples \
        train-image edge-image image-test install-test train-image-test bundle pin-bases pin-hashes

help: ## print this help
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "Variables: RUN=demo CONFIG=configs/RUN.yaml BASE=model DATA=records ENGINE=docker|podman"

##@ The job
demo: CONFIG := $(or $(CONFIG),configs/demo.yaml)
demo: $(READY) ## everything, from base model to answered question (BASE=... for another model)
	$(KORMED) demo $(OPTIONS)

data: $(READY) ## read, check and split records (DATA=folder, zip or file)
	$(KORMED) data $(OPTIONS)

train: $(READY) ## fine-tune with NF4 QLoRA; resumes
	$(KORMED) train $(OPTIONS)

export: $(READY) ## merge, write GGUF, quantize, check parity
	$(KORMED) export $(OPTIONS)

eval: $(READY) ## answer the test split with every arm, score, gate, report
	$(KORMED) eval $(OPTIONS)

verify: $(READY) ## check a run's files and decide its gate; fails unless PASS
	$(KORMED) verify --run $(RUN)

serve: $(READY) ## serve the run's GGUF on http://127.0.0.1:8080
	$(KORMED) serve --run $(RUN)

doctor: $(READY) ## what this machine has and lacks
	$(KORMED) doctor

##@ Development
test: $(READY) ## every test that a bare machine can run
	$(VENV)/bin/pytest

lint: $(READY) ## style, types, samples
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python samples/build.py --check

docs: $(READY) ## write the generated pages of docs/
	$(VENV)/bin/python docs/generate.py

samples: $(READY) ## write samples/ from samples/facts/
	$(VENV)/bin/python samples/build.py

##@ Containers
train-image: ## build the training image (several GB with CUDA)
	$(IMAGE_BUILD) -t kormed-train -f Dockerfile.train .

edge-image: ## build the edge image: llama.cpp and the service, no torch, no compiler
	$(IMAGE_BUILD) -t $(IMAGE) -f Dockerfile.edge .

image-test: $(READY) ## serve runs/RUN/gguf from the edge image with everything closed
	DOCKER=$(DOCKER) EDGE_IMAGE=$(IMAGE) MODEL_DIR=$(MODEL_DIR) $(VENV)/bin/pytest -m docker tests/test_image.py

install-test: $(READY) ## bundle runs/RUN, install it offline, ask, verify, update, roll back; power cuts
	DOCKER=$(DOCKER) EDGE_IMAGE=$(IMAGE) RUN_DIR=runs/$(RUN) $(VENV)/bin/pytest -m docker tests/test_install_real.py tests/test_power_cut.py

train-image-test: ## the demo in the training image, without a network; its base is the one of `make demo`
	$(DOCKER) run --rm --network none --cap-drop ALL --security-opt no-new-privileges --user "$$(id -u):$$(id -g)" \
	  --tmpfs /cache:exec,mode=1777 -v "$${KORMED_HOME:-$$HOME/.cache/kormed}:/cache/kormed" -v "$(CURDIR)/runs:/runs" \
	  kormed-train demo --run image-demo --config configs/demo.yaml

bundle: $(READY) ## pack and sign runs/RUN with the edge image (TYPE=Q4_K_M BUNDLE_VERSION=1 KEY=kormed.key)
	mkdir -p bundles
	$(DOCKER) save $(IMAGE) --output bundles/.image.tar
	$(KORMED) bundle create --run $(RUN) --type $(TYPE) --version $(BUNDLE_VERSION) --key $(KEY) \
	  --image bundles/.image.tar --out bundles $(BUNDLE_OPTIONS)
	rm bundles/.image.tar

pin-bases: ## write the digests of the base images into the Dockerfiles, where a registry can be reached
	DOCKER=$(DOCKER) .ci/bases Dockerfile.edge Dockerfile.train

pin-hashes: $(READY) ## write the hashes of the images' packages, as pip's index gives them
	$(VENV)/bin/python .ci/hashes.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
