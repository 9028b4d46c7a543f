# make demo: predict a cell type that was hidden, on simulated data.  make test: run the tests.
# make tutorials: run the notebooks.  make docs: build the site in docs/_build/html.  make types: check annotations.
# Each makes .venv with the tested versions first. Needs Python >= 3.11; choose one with PYTHON=.

PYTHON ?= python3
VENV ?= .venv
export OMP_NUM_THREADS ?= 1  # several threads slow small networks down on shared cores

.PHONY: demo test tutorials lint types docs

demo: $(VENV)/installed
	$(VENV)/bin/trvae-sc demo --out demo --force

test: $(VENV)/installed
	NUMBA_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# those that take longest are begun first
LONG = $(patsubst %,tutorials/%.ipynb,generative_models unseen_conditions your_data gallery benchmark \
	query_and_integration second_study kang)

tutorials: $(VENV)/installed  # a cell may take 180 seconds; scanpy would give torch all cores
	NUMBA_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --nbmake --nbmake-timeout=180 \
		$(LONG) $(filter-out $(LONG),$(wildcard tutorials/*.ipynb))

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed
	$(VENV)/bin/mypy

docs: $(VENV)/installed-docs  # notebooks are shown as they were stored; a warning is an error
	rm -rf docs/api/generated
	$(VENV)/bin/python -m sphinx -E -n -W --keep-going -b html docs docs/_build/html

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "trvae_sc needs Python >= 3.11; this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --upgrade pip  # an old one takes longer
