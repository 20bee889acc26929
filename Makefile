PYTHON ?= $(shell command -v python3.11 || command -v python3.12)
VENV := .venv
BIN := $(VENV)/bin
PIP_ARGS ?=

ENGINES := build/engines
SCATTERED := build/engines-scatter
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

# The ONNX Runtime with CUDA in the place of the other: both are one folder of site-packages, so that removing one breaks
# the other, and pip, which knows nothing of that, would bring the other back for our own requirement.
$(VENV)/gpu: $(VENV)/dev | need-gpu
	$(BIN)/python -m pip uninstall --yes onnxruntime
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) \
		--no-deps --force-reinstall onnxruntime-gpu
	@touch $@

, := ,
define install
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed; set PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e '.[$(1)]'
endef

# numba looks at the file of a compiled loop, and sees no change of what the loop calls in others.
COMPILED := physics rules stages
build/compiled: $(wildcard $(COMPILED:=/*.py))
	@rm -rf $(COMPILED:=/__pycache__)
	@mkdir -p build && touch $@

.PHONY: demo
demo: $(VENV)/demo build/compiled  ## Find the tracks of the sample events with a real Triton server
	$(BIN)/python -m tritrack.demo

.PHONY: test
test: $(VENV)/dev build/compiled  ## Run every test, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: test-gpu
test-gpu: $(VENV)/gpu build/compiled  ## Run the tests that need a GPU, and TensorRT
	$(BIN)/python -m pytest -m "gpu or tensorrt"

.PHONY: lint
lint: $(VENV)/dev  ## Run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: export
export: $(VENV)/demo build/compiled  ## Export the shipped weights to build/engines
	$(BIN)/tritrack export --engine onnx --weights $(WEIGHTS) --events events/samples --out $(ENGINES)

.PHONY: export-scatter
export-scatter: $(VENV)/demo build/compiled  ## Export them for a GPU, to build/engines-scatter
	$(BIN)/tritrack export --engine onnx --edge-sum scatter --weights $(WEIGHTS) --events events/samples \
		--out $(SCATTERED)

.PHONY: serve
serve: export  ## Serve the shipped weights until Ctrl-C
	$(BIN)/tritrack repository --engines $(ENGINES) --rules weights/rules --device cpu --server embedded --out $(REPOSITORY)
	$(BIN)/tritrack serve $(REPOSITORY)

# NVIDIA's server image (docs/containers.md): DEVICE=gpu serves on a GPU, TENSORRT=1 the plans of export-container.
TRITON_TAG := 25.01
CONTAINER_REPOSITORY := build/container_repository
CONTAINER_PLANS := build/container_plans
DEVICE := cpu
CONTAINER_ENGINES = $(if $(TENSORRT),$(CONTAINER_PLANS),$(if $(filter gpu,$(DEVICE)),$(SCATTERED),$(ENGINES)))
THREADS := 2
COMPOSE := docker compose -p tritrack -f deploy/compose.yaml $(if $(filter gpu,$(DEVICE)),-f deploy/compose.gpu.yaml)
.PHONY: need-docker
need-docker:
	@command -v docker >/dev/null || { echo "make: there is no docker here; install Docker Engine and its compose plugin"; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "make: docker has no compose plugin here; install it"; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "make: docker reaches no daemon here; start it, or become a member of its group"; exit 1; }

.PHONY: serve-container
serve-container: need-docker  ## Serve the shipped weights in NVIDIA's server image (DEVICE=gpu, TENSORRT=1)
	$(if $(TENSORRT),,$(MAKE) export$(if $(filter gpu,$(DEVICE)),-scatter))
	$(BIN)/tritrack repository --engines $(CONTAINER_ENGINES) --server container \
		--image $(TRITON_TAG) --device $(DEVICE) --threads $(THREADS) --out $(CONTAINER_REPOSITORY)
	TRITON_TAG=$(TRITON_TAG) REPOSITORY=$(CURDIR)/$(CONTAINER_REPOSITORY) $(COMPOSE) up --build --force-recreate --wait

.PHONY: export-container
export-container: need-docker  ## Build TensorRT engines inside NVIDIA's server image, for this GPU
	$(MAKE) export-scatter
	mkdir -p $(CONTAINER_PLANS)
	docker build --file deploy/Dockerfile --target export --build-arg TRITON_TAG=$(TRITON_TAG) \
		--tag tritrack-export:$(TRITON_TAG) .
	docker run --rm --gpus all --user $$(id -u):$$(id -g) --env NUMBA_CACHE_DIR=/tmp/numba \
		--volume $(CURDIR)/$(SCATTERED):/engines:ro --volume $(CURDIR)/$(WEIGHTS):/weights:ro \
		--volume $(CURDIR)/events/samples:/events:ro --volume $(CURDIR)/$(CONTAINER_PLANS):/plans \
		tritrack-export:$(TRITON_TAG) python3 -m tritrack export --engine tensorrt --engines /engines \
		--weights /weights --events /events --out /plans

# The engines of a machine with a GPU and TensorRT, what each stage costs there, what packs gain, and what the service adds.
PLANS := build/plans
GPU_EVENTS := build/gpu
.PHONY: need-gpu
need-gpu: $(VENV)/dev
	@$(BIN)/python -c "from tritrack.stages.plan_file import find_gpu as f; raise SystemExit(0 if f() else 1)" \
		|| { echo "make: there is no GPU here"; exit 1; }

HAS_CUDA = $(BIN)/python -c "from tritrack.stages.engine import cuda_is_there as f; raise SystemExit(not f())"
HAS_TENSORRT = $(BIN)/python -c "import tensorrt" 2>/dev/null
.PHONY: need-engine
need-engine: $(VENV)/gpu
	@$(HAS_CUDA) || $(HAS_TENSORRT) \
		|| { echo "make: neither an ONNX Runtime with CUDA (onnxruntime-gpu) nor TensorRT is here: nothing to measure"; exit 1; }

# What needs no GPU is made of files, the last ones that are written: another machine can make it.
SIMULATED := $(GPU_EVENTS)/pileup0/event000000023.parquet $(GPU_EVENTS)/pileup200/event000000000.parquet
$(GPU_EVENTS)/pileup0/event000000023.parquet: | $(VENV)/dev
	$(BIN)/tritrack simulate $(@D) --events 24 --pileup 0 --seed 57 $(DIRTY)

$(GPU_EVENTS)/pileup200/event000000000.parquet: | $(VENV)/dev
	$(BIN)/tritrack simulate $(@D) --events 1 --pileup 200 --seed 57 $(DIRTY)

$(SCATTERED)/card.json: $(wildcard $(WEIGHTS)/* export/*.py) | $(VENV)/demo build/compiled
	$(MAKE) export-scatter

.PHONY: gpu-inputs
gpu-inputs: $(SIMULATED) $(SCATTERED)/card.json  ## Make what bench-gpu needs and a machine without a GPU can make

.PHONY: bench-gpu
bench-gpu: need-engine gpu-inputs  ## Time every stage, packs, and what the service adds, on the GPU, and whether answers stay: with the engines that are here
	$(MAKE) --keep-going bench-gpu-onnx bench-gpu-tensorrt

# Each measurement is a target of its own, and fails alone.
MEASURED := stages packing service repeats
.PHONY: bench-gpu-onnx bench-gpu-tensorrt
bench-gpu-onnx:
	@if $(HAS_CUDA); then $(MAKE) --keep-going $(MEASURED:%=bench-gpu-%-onnx); \
		else echo "make: ONNX Runtime has no CUDA here (onnxruntime-gpu), its engines are left out"; fi

bench-gpu-tensorrt:
	@if $(HAS_TENSORRT); then $(MAKE) --keep-going $(MEASURED:%=bench-gpu-%-tensorrt); \
		else echo "make: TensorRT is not here, its engines are left out"; fi

$(PLANS)/card.json: $(SCATTERED)/card.json | $(VENV)/gpu
	$(BIN)/tritrack export --engine tensorrt --engines $(SCATTERED) --weights $(WEIGHTS) --events events/samples --out $(PLANS)

KINDS := onnx tensorrt
FOLDER_onnx := $(SCATTERED)
FOLDER_tensorrt := $(PLANS)
ON_GPU = --engines $(FOLDER_$*) --device gpu --out bench/results/gpu-$(1)-$*.json
ALL_MEASURED := $(foreach kind,$(KINDS),$(MEASURED:%=bench-gpu-%-$(kind)))
.PHONY: $(ALL_MEASURED)
$(filter %-onnx,$(ALL_MEASURED)): need-engine gpu-inputs
$(filter %-tensorrt,$(ALL_MEASURED)): need-engine gpu-inputs $(PLANS)/card.json

$(KINDS:%=bench-gpu-stages-%): bench-gpu-stages-%:
	$(BIN)/python -m tritrack.bench.gpu --engines $(FOLDER_$*) --out bench/results events/samples $(GPU_EVENTS)/pileup200

$(KINDS:%=bench-gpu-packing-%): bench-gpu-packing-%:
	$(BIN)/python -m tritrack.bench.packing $(GPU_EVENTS)/pileup0 $(call ON_GPU,packing) --seconds 30

$(KINDS:%=bench-gpu-service-%): bench-gpu-service-%:
	$(BIN)/python -m tritrack.bench.service $(GPU_EVENTS)/pileup200 $(call ON_GPU,service) --threads 2 --in-flight 4

$(KINDS:%=bench-gpu-repeats-%): bench-gpu-repeats-%:
	$(BIN)/python -m tritrack.bench.repeats events/samples $(GPU_EVENTS)/pileup0 $(call ON_GPU,repeats) --first 3 --first 2

# All finders on the same events: of seeds that nothing is trained or chosen on. More events: COMPARE_40=40 COMPARE_200=12.
COMPARE_40 := 4
COMPARE_200 := 1
COMPARED := build/compare
$(ENGINES)/card.json: $(wildcard $(WEIGHTS)/*)
	$(MAKE) export

.PHONY: compare
compare: $(VENV)/dev build/compiled $(ENGINES)/card.json  ## Compare networks, rules and a Kalman filter on the same events: JSON and page
	$(BIN)/tritrack simulate $(COMPARED)/pileup40 --events $(COMPARE_40) --pileup 40 --seed 32 $(DIRTY)
	$(BIN)/tritrack simulate $(COMPARED)/pileup200 --events $(COMPARE_200) --pileup 200 --seed 31 $(DIRTY)
	$(BIN)/python -m tritrack.bench.compare $(COMPARED)/pileup40 $(COMPARED)/pileup200 --engines $(ENGINES) \
		--rules weights/rules --first $(COMPARE_40) --first $(COMPARE_200) --out $(COMPARED)/compare.json --page

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
DENSE := --events data/train200 --events data/train200-short --events data/train40 \
	--validation data/val200 --validation data/val40 --name ttbar-pu200
.PHONY: train
# With more threads sums have another order, and a few thousand steps later the weights are others.
train: export OMP_NUM_THREADS := 1
train: $(VENV)/dev  ## Train the shipped model anew, from seeds alone, into weights/dense (3 hours)
	$(BIN)/tritrack simulate data/train200 --events 40 --pileup 200 --seed 11 $(DIRTY)
	$(BIN)/tritrack simulate data/train200-short --events 40 --pileup 200 --seed 12 --beamspot-z 5.5 $(DIRTY)
	$(BIN)/tritrack simulate data/train40 --events 60 --pileup 40 --seed 13 $(DIRTY)
	$(BIN)/tritrack simulate data/val200 --events 4 --pileup 200 --seed 21 $(DIRTY)
	$(BIN)/tritrack simulate data/val40 --events 12 --pileup 40 --seed 22 $(DIRTY)
	# The GNN begins with sparse, clean events, of which it learns fast, and goes on with dense ones, twice.
	$(BIN)/tritrack simulate data/first40 --events 150 --pileup 40 --seed 1 --jobs 2
	$(BIN)/tritrack train all --events data/first40 --validation data/val40 --work data/work-first \
		--out build/first --name first --embedding-steps 4000 --filter-steps 1500 --gnn-steps 2200
	$(BIN)/tritrack train all $(DENSE) --work data/work-dense --out build/dense \
		--gnn-from build/first --gnn-steps 2500 --gnn-learning-rate 1e-3
	$(BIN)/tritrack train all $(DENSE) --work data/work --out weights/dense \
		--gnn-from build/dense --gnn-steps 2500 --gnn-learning-rate 5e-4

.PHONY: clean
clean:  ## Remove what was built, the environment excepted
	rm -rf build dist *.egg-info
