# Everything runs in .venv, which the first target that needs it makes. Nothing outside this folder is touched.
.POSIX:

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
# of bench-eta, each with benchmarks/eta/tables-NAME.yaml
ETA = new-student new-student-click same-data same-data-click simulator simulator-same-data biased biased-same-data \
  movielens movielens-same-data
# the public HSTU kernel that bench-teacher compares with on a GPU: a checkout, fetched where there is none
KERNEL = https://github.com/meta-recsys/generative-recommenders
CHECKOUT = build/generative-recommenders
RIVAL ?= $(CHECKOUT)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint docs bench bench-store bench-teacher bench-eta clean versions

help:
	@echo 'make demo      teacher, labels, student and report on simulated clicks, in a few minutes on a CPU'
	@echo 'make test      what CI runs: ruff, mypy and all tests'
	@echo 'make lint      ruff and mypy alone'
	@echo 'make docs      the documentation as HTML in build/docs; a warning is an error'
	@echo 'make bench     the benchmarks, with this machine beside the numbers'
	@echo 'make bench-store  the label store alone: against files, arrays, DuckDB and LMDB'
	@echo 'make bench-teacher  the HSTU teacher and its attention alone; a GPU is measured where there is one'
	@echo 'make bench-eta  ways to transfer, sizes, capture and choices on real and simulated logs: half a day on 2 cores'
	@echo 'make versions  what is installed in $(VENV)'
	@echo 'make clean     remove $(VENV), caches and build outputs; runs/ stays'
	@echo 'Variables: PYTHON=$(PYTHON) (3.11 or newer)  VENV=$(VENV)  WORKERS=$(WORKERS) (of make test)  RIVAL=$(RIVAL) (a checkout)'

demo: $(VENV)/.run
	$(BIN)/recdistill demo

# A file stays with one worker: what its tests share is made once. The order is that of the folders: unit tests, which
# are many and short, come last and fill up whichever worker is free.
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -b html -E -n -W --keep-going -q docs build/docs
	@echo 'built: build/docs/README.html'

bench: $(VENV)/.bench
	@found=; for file in benchmarks/bench_*.py; do \
	  [ -e "$$file" ] || continue; found=1; \
	  echo "== $$file"; $(BIN)/python "$$file" || exit 1; \
	done; [ -n "$$found" ] || { echo 'benchmarks/ holds no bench_*.py' >&2; exit 1; }

bench-store: $(VENV)/.bench
	$(BIN)/python benchmarks/bench_store.py
	$(BIN)/python benchmarks/bench_backfill.py

bench-teacher: $(VENV)/.bench
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
	  && [ '$(RIVAL)' = $(CHECKOUT) ] && [ ! -d $(CHECKOUT) ]; then \
	  GIT_TERMINAL_PROMPT=0 git clone --depth 1 $(KERNEL) $(CHECKOUT) \
	    || echo 'the public HSTU kernel is left out: $(KERNEL) could not be cloned'; \
	fi
	$(BIN)/python benchmarks/bench_teacher.py
	$(BIN)/python benchmarks/bench_attention.py
	$(BIN)/python benchmarks/bench_attention_gpu.py --rival '$(RIVAL)'
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_plan.py --gpu
	$(BIN)/python benchmarks/bench_means.py
	$(BIN)/python benchmarks/bench_scoring.py

bench-eta: $(VENV)/.bench
	@set -e; for name in $(ETA); do \
	  if [ $${name%-same-data} = movielens ] && [ ! -d ml/dataset ]; then \
	    echo "$$name is left out: benchmarks/eta/movielens.yaml says how to bring the ratings to ml/dataset"; continue; \
	  fi; \
	  $(BIN)/recdistill sweep benchmarks/eta/tables-$$name.yaml --out runs/eta/tables --workers 2; \
	done
	$(BIN)/python benchmarks/eta/tables.py runs/eta/tables --out runs/eta/pages

versions: $(VENV)/.test
	@$(BIN)/python --version
	@$(BIN)/python -m pip list --disable-pip-version-check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis lightning_logs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: the exact pin lets pip take the build that suits this machine, and nothing that is
# installed afterwards may move it.
$(VENV)/.run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "recdistill needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its ensurepip module is missing." >&2; \
	  echo 'On Debian and Ubuntu: sudo apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.run
	$(PIP) -e '.[docs]'
	@touch $@
