# Every target makes .venv first where it is missing or older than what it is made from.

# The version the pins in constraints.txt were tested with, else whatever is recent enough.
PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; \
	done)

BIN := .venv/bin
READY := .venv/.ready

# A thread that spins for long while it waits takes a processor from other work, and one that never does sleeps and
# wakes between any two operations: it is to spin for as long as these are apart. Benchmarks run as users' programs do.
demo: export OMP_WAIT_POLICY ?= PASSIVE
demo: export GOMP_SPINCOUNT ?= 10000
# Each half of the tests has a processor: with a second thread, which mostly waits for one, some take twice as long.
test: export OMP_NUM_THREADS ?= 1
# TensorFlow greets on stderr otherwise.
export TF_CPP_MIN_LOG_LEVEL ?= 3

# What `make bench` runs, each in a process of its own.
BENCHMARKS := attribution batch estimation scale frameworks gpu readout_quality

.PHONY: help demo test test-install soak check docs bench bench-quick clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(READY) ## explain three photographs with both backends; pictures in demo-out/
	$(BIN)/iba demo --out demo-out

test: $(READY) ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-install: ## install the wheel into clean environments, and run the README's lines in them
	$(PYTHON) tests/installation.py

soak: export OMP_NUM_THREADS ?= 1
soak: $(READY) ## thousands of random networks, then the other long runs: hours; totals in build/soak/
	@status=0; \
	$(BIN)/python -m tests.generator --soak 5000 || status=1; \
	$(BIN)/python -m pytest -m "soak or not soak" tests/architectures || status=1; \
	$(BIN)/python -m pytest -m soak --ignore tests/architectures --numprocesses 2 --dist loadfile || status=1; \
	$(BIN)/python -m benchmarks.soak && $(BIN)/python -m benchmarks.report && $(BIN)/python -m benchmarks.readme; \
	exit $$status

check: $(READY) ## lint, check the format, the types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@# What users see of the core has types. It looks for packages in the first Python of the PATH, and says much.
	@echo "$(BIN)/basedpyright --verifytypes iba_core --ignoreexternal"
	@report=$$(PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/basedpyright --verifytypes iba_core --ignoreexternal) || \
		{ echo "$$report"; exit 1; }
	$(BIN)/lint-imports

docs: $(READY) ## build the documentation's site in site/; every warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

bench: $(READY) bench-quick ## time everything, two and a half hours; tables, plots and the pages' figures anew
	for program in $(BENCHMARKS); do $(BIN)/python -m benchmarks.$$program || exit 1; done
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.readme

bench-quick: $(READY) ## time what matters most, in five minutes; the pages' figures anew
	$(BIN)/python -m benchmarks.quick
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.readme

clean: ## remove everything that make has made
	rm -rf .venv build demo-out site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt requirements-alone.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }
	@echo "making .venv: PyTorch, TensorFlow and what goes with them; this takes some minutes the first time"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[all,dev,docs]' --constraint constraints.txt
	# By themselves: what they depend on would bring another PyTorch, and TensorFlow under another name.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement requirements-alone.txt
	@touch $@
