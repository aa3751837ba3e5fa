# Set-up and checks on a machine that has only Python and make: `make run`, `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Two test files run at a time, with one thread each: torch with more threads than cores is many times slower.
# Tests that need a browser are skipped and listed. `make test SYSTEM=--system` runs them too.
SYSTEM ?=

.PHONY: run test lint types notebook pictures site check format clean

run: $(READY) ## train PartialFC on glyphs and print the results
	$(BIN)/python -m experiments.run head=pfc sample_rate=0.1

test: $(READY) ## the test suite
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 --dist loadfile $(SYSTEM)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.words

types: $(READY)
	$(BIN)/mypy

notebook: $(READY) ## run the notebook of the documentation
	$(BIN)/python -m tests.notebook

pictures: $(READY) ## draw the pictures of the documentation again, in about a quarter of an hour
	$(BIN)/python docs/pictures.py

site: $(READY) ## build the site of the documentation into site/, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint types test notebook site ## what CI runs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build *.egg-info heads/*.egg-info

# torch is installed first, so that everything else is resolved against its pinned build.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"Python 3.11 or newer is required, but {sys.executable} is {sys.version.split()[0]}; run make PYTHON=/path/to/python")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
