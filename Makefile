# make demo: set up, then pretrain, score and report on the bundled data.   make test: set up, then every check.
# make docs: build the site, strictly, into site/.
# make bench: set up with the peers, measure, render docs/benchmarks.md. INFLUENCE_SSL_TFDS=… names prepared CIFAR-10.
# make study: ask the published study's questions, render docs/results/study.md. CIFAR10=… names prepared CIFAR-10 and CIFAR-100, CIFAIR=… the
# folder of ciFAIR's lists of duplicates, FAIRFACE=… that of FairFace, ENCODERS=… folders of encoders. It continues where it
# was stopped.
# The first interpreter that is found, starts, is new enough and can make environments; looked for once, and only if needed.
# Another one: make PYTHON=… VENV=….
SUITABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
FIRST = $(shell for each in python3.13 python3.12 python3.11 python3; do \
	"$$each" -c '$(SUITABLE)' >/dev/null 2>&1 && { echo "$$each"; break; }; done)
PYTHON ?= $(eval PYTHON := $(FIRST))$(PYTHON)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# uv fetches, unpacks and compiles on every core. It does not read pip's settings: where it cannot reach the packages, pip does.
define INSTALL
$(PIP) uv
$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt $(1) || $(PIP) $(1)
endef

define ENVIRONMENT
@test -n '$(PYTHON)' || { echo 'No Python from 3.11 on with venv and ensurepip is found. Name one: make PYTHON=/path/to/python3.13' >&2; exit 1; }
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

.PHONY: demo test check lint types suite docs picture fix bench study clean

demo: $(VENV)/run
	$(BIN)/influence-ssl demo --out demo

test: $(VENV)/dev
	$(MAKE) --jobs 3 lint types suite

check: lint types

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/basedpyright --pythonpath $(BIN)/python

suite: $(VENV)/dev      # files in the order of tests/seconds.json, a file on one worker; --write-seconds measures them again
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder

docs: $(VENV)/dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

picture: $(VENV)/dev demo      # the README's, of the report; takes Chromium
	$(BIN)/python -m tests.chromium demo/report.html docs/plots/report.png

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
	$(BIN)/python -m benchmarks.gram cost
	$(BIN)/python -m benchmarks.gram cost --setting.width 64 --repeats 2
	$(BIN)/python -m benchmarks.render

QUESTIONS := table accuracy exactly duplicates borders separation distribution deviation beyond_loss perturbations strengths choices whole
SMALL_QUESTIONS := stability backgrounds outputs trajectory retraining memorised removal
ENCODERS ?= $(addprefix experiments/encoders/,simclr_torch_w16_cifar10 byol_torch_w16_cifar10 barlow_twins_torch_w16_cifar10)

study: $(VENV)/dev
	for encoder in $(ENCODERS); do for question in $(QUESTIONS); do \
		$(BIN)/python -m experiments.study.$$question --encoder $$encoder --data-dir '$(CIFAR10)' --truth '$(CIFAIR)' || exit 1; \
	done; done
	$(BIN)/python -m experiments.study.early --data-dir '$(CIFAR10)'
	$(BIN)/python -m experiments.study.between
	for question in $(SMALL_QUESTIONS); do \
		$(BIN)/python -m experiments.study.$$question --data-dir '$(CIFAR10)' || exit 1; \
	done
	for question in stability backgrounds; do \
		$(BIN)/python -m experiments.study.$$question --images cifar100 --data-dir '$(CIFAR10)' || exit 1; \
	done
	$(BIN)/python -m experiments.study.copies --data-dir '$(CIFAR10)'
	$(BIN)/python -m experiments.study.faces --fairface '$(FAIRFACE)'
	$(BIN)/python -m experiments.study.page

$(VENV)/run: pyproject.toml constraints.txt
	$(ENVIRONMENT)
	$(call INSTALL,-e '.[all]')
	touch $@

$(VENV)/dev: pyproject.toml constraints.txt
	$(ENVIRONMENT)
	$(call INSTALL,--no-deps -r constraints.txt -e .)    # all are pinned there: nothing to resolve
	$(BIN)/pip check
	touch $@

$(VENV)/bench: pyproject.toml constraints.txt constraints-bench.txt
	$(ENVIRONMENT)
	$(call INSTALL,-c constraints-bench.txt -e '.[bench]')
	touch $@

clean:
	rm -rf $(VENV) demo dist site
