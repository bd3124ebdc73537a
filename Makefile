# make demo, make test; make device-test adds emulated Arm cores and a Hexagon DSP, phones and boards on loopback.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# what neither times nor fits into a submission's checks: random networks, and public ones as they are
nightly: $(STAMP)
	mkdir -p build
	$(BIN)/python tools/check_native.py --sanitize
	$(BIN)/python tools/soak.py --count 1000 --jobs 2 --json build/soak.jsonl
	$(BIN)/python tools/zoo.py --work build/zoo --json build/zoo.json
	$(MAKE) zoo ZOO=--fresh

# today's idioms (tests/zoo) on every runtime; done rows stay: ZOO="--fresh --only ghostnet --profile"
zoo: $(STAMP)
	$(BIN)/python tools/zoo_idioms.py --work build/idioms --json build/idioms.json --page docs/networks.md $(ZOO)

.PHONY: demo test test-quick check nightly zoo device-test lint types floors clean

demo: $(STAMP)
	$(BIN)/edgeq demo -o demo-out

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

# no converter runs in these
test-quick: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 tests/test_coded.py tests/test_recipes.py tests/test_rounding.py tests/test_house.py \
	  tests/test_docs.py tests/test_runtimes.py tests/test_whole.py tests/test_verify.py tests/test_compare.py

check: lint types floors

# packages from Debian (as root or by sudo), an Arm root and the runners in home(), which is ~/.cache/edgeq
device-test: $(STAMP)
	tools/device_setup.sh --tests
	$(BIN)/python tools/arm64_root.py
	$(BIN)/python -m edgeq.runners.build aarch64-linux
	EDGEQ_NO_SKIP=1 $(BIN)/python -m pytest device_tests

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy -p edgeq

floors: $(STAMP)
	PYTHONPATH=. $(BIN)/lint-imports --no-cache

# three steps: pip takes no hashes beside an editable install, and torch has none (see constraints.txt)
$(STAMP): pyproject.toml constraints.txt setup.py native/optim.cpp
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-deps --require-hashes -r constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf build demo-out demo-lidar-out $(VENV)
