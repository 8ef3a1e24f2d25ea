# `make demo` and `make test` each do their whole set-up on a fresh machine.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

.PHONY: demo test lint types slow docs bench setup clean

demo: setup
	$(BIN)/leanlabel compare adapt/scenes-small --seeds 1 --out runs/demo
	@echo
	@echo "Open runs/demo/report.html (source-only against adapted) and"
	@echo "runs/demo/adapt-scenes-small/seed-0/report.html (the adapted network, with pictures before and after)."

test: setup
	PYTHONHASHSEED=0 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow and not gpu"

slow: setup
	$(BIN)/python -m pytest -q -m "slow and not gpu"

lint: setup
	$(BIN)/ruff check src tests benchmarks proofs docs
	$(BIN)/ruff format --check src tests benchmarks proofs docs

types: setup
	$(BIN)/pyright

docs: setup
	$(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/python -m benchmarks

setup: $(READY)

# torch first: with it in place, no other package asks for a build with GPU libraries it does not need.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "leanlabel needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs site
