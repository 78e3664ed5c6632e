# make demo: set up, then pretrain, score and report on the bundled data.   make test: set up, then every check.
# make bench: set up with the peers, measure, render docs/benchmarks.md. INFLUENCE_SSL_TFDS=… names prepared CIFAR-10.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '/tests?/' $(VENV)/lib    # on every core, where pip takes one

.PHONY: demo test check lint types suite fix bench clean

demo: $(VENV)/run
	$(BIN)/influence-ssl demo --out demo

test: lint
	$(MAKE) --jobs 2 types suite

check: lint types

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

suite: $(VENV)/dev      # files in the order of tests/seconds.json, a file on one worker; --write-seconds measures them anew
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

fix: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.agreement
	$(BIN)/python -m benchmarks.fidelity
	$(BIN)/python -m benchmarks.convolutions
	$(BIN)/python -m benchmarks.primitives --setting.width 16
	$(BIN)/python -m benchmarks.primitives --setting.width 64
	$(BIN)/python -m benchmarks.cost --setting.width 16 --memory
	$(BIN)/python -m benchmarks.cost --setting.width 16 --setting.examples 256 --setting.batch 256 --ranks 16 --repeats 3 --memory
	$(BIN)/python -m benchmarks.cost --setting.width 64 --setting.examples 64 --ranks 16 32 --repeats 3 --memory
	$(BIN)/python -m benchmarks.render

$(VENV)/run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	$(COMPILE)
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	touch $@

$(VENV)/bench: pyproject.toml constraints.txt constraints-bench.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -c constraints-bench.txt -e '.[bench]'
	$(COMPILE)
	touch $@

clean:
	rm -rf $(VENV) demo dist
