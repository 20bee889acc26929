PYTHON ?= $(shell command -v python3.11 || command -v python3.12)
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=

ENGINES := build/engines
REPOSITORY := build/model_repository
WEIGHTS := weights/default

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

# A stamp per set of extras: the demo needs neither the simulation nor the test tools.
$(VENV)/demo: pyproject.toml constraints.txt
	$(call install,export$(,)plots$(,)server)
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	$(call install,dev)
	@touch $@ $(VENV)/demo

, := ,
define install
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[$(1)]'
endef

.PHONY: demo
demo: $(VENV)/demo  ## Find the tracks of the sample events with a real Triton server
	$(BIN)/python -m tritrack.demo

.PHONY: test
test: $(VENV)/dev  ## Run every test
	$(BIN)/python -m pytest

.PHONY: test-gpu
test-gpu: $(VENV)/dev  ## Run the tests that need a GPU, and TensorRT
	$(BIN)/python -m pytest -m "gpu or tensorrt"

.PHONY: lint
lint: $(VENV)/dev  ## Run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: export
export: $(VENV)/demo  ## Export the shipped weights to build/engines
	$(BIN)/tritrack export --engine onnx --weights $(WEIGHTS) --events events/samples --out $(ENGINES)

.PHONY: serve
serve: export  ## Serve the shipped weights until Ctrl-C
	$(BIN)/tritrack repository --engines $(ENGINES) --device cpu --server embedded --out $(REPOSITORY)
	$(BIN)/tritrack serve $(REPOSITORY)

# The engines of a machine with a GPU and TensorRT, and what each stage costs there.
PLANS := build/plans
.PHONY: bench-gpu
bench-gpu: $(VENV)/dev  ## Build TensorRT engines of the shipped weights and time every stage on the GPU
	$(BIN)/tritrack export --engine onnx --edge-sum scatter --weights $(WEIGHTS) --events events/samples \
		--out build/engines-scatter
	$(BIN)/tritrack export --engine tensorrt --engines build/engines-scatter --weights $(WEIGHTS) \
		--events events/samples --out $(PLANS)
	$(BIN)/python -m tritrack.bench.gpu --engines $(PLANS) --out bench/results events/samples

# The page is made of what there is, and the protocol's failure is what counts at the end.
.PHONY: bench bench-full bench-check
bench: $(VENV)/dev  ## Measure in minutes, into bench/results/short, and make the page bench/report.html
	$(call bench,short)

bench-full: $(VENV)/dev  ## Measure in hours, into bench/results/full, and make the page
	$(call bench,full)

define bench
	$(BIN)/python -m tritrack.bench.protocol $(1) --out bench/results; code=$$?; \
		$(BIN)/python -m tritrack.bench.report --results bench/results --out bench/report.html && exit $$code
endef

bench-check: $(VENV)/dev  ## Measure a part again and fail where a ratio is 25 % worse than the committed one
	$(BIN)/python -m tritrack.bench.guard

# Events to train on and to choose the cuts on: a seed each.
DIRTY := --noise 0.15 --inefficiency 0.02 --jobs 2
.PHONY: train
train: $(VENV)/dev  ## Train a model for dense events, from seeds alone (3 hours on 2 cores)
	$(BIN)/tritrack simulate data/train200 --events 40 --pileup 200 --seed 11 $(DIRTY)
	$(BIN)/tritrack simulate data/train200-short --events 40 --pileup 200 --seed 12 --beamspot-z 5.5 $(DIRTY)
	$(BIN)/tritrack simulate data/train40 --events 60 --pileup 40 --seed 13 $(DIRTY)
	$(BIN)/tritrack simulate data/val200 --events 4 --pileup 200 --seed 21 $(DIRTY)
	$(BIN)/tritrack simulate data/val40 --events 12 --pileup 40 --seed 22 $(DIRTY)
	# The GNN begins with sparse, clean events, of which it learns fast, and goes on with dense ones.
	$(BIN)/tritrack simulate data/first40 --events 150 --pileup 40 --seed 1 --jobs 2
	$(BIN)/tritrack train all --events data/first40 --validation data/val40 --work data/work-first \
		--out build/first --name first --embedding-steps 4000 --filter-steps 1500 --gnn-steps 2200
	$(BIN)/tritrack train all --events data/train200 --events data/train200-short --events data/train40 \
		--validation data/val200 --validation data/val40 --work data/work --out weights/dense --name ttbar-pu200 \
		--gnn-from build/first --gnn-steps 2500 --gnn-learning-rate 1e-3

.PHONY: clean
clean:  ## Remove what was built, the environment excepted
	rm -rf build dist *.egg-info
