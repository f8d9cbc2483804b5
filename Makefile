# `make demo` and `make test` work from a bare checkout: they make .venv and install the locked dependencies first.
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test slow lint format lock clean

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(READY)  ## Search a small network on real digits, show the front, export its knee
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

# By files, pytest-xdist gives what replaces a crashed worker nothing to do, and waits for it: so none is replaced.
test: $(READY)  ## Everything that is not marked slow, on two cores
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --max-worker-restart 0 tests

slow: $(READY)  ## What `make test` leaves out
	$(BIN)/python -m pytest -m slow tests

lint: $(READY)  ## Style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(READY)  ## Pin everything anew (needs uv)
	uv pip compile --quiet pyproject.toml --all-extras --python-version 3.11 --no-annotate --no-header \
		--constraint constraints.txt --output-file requirements.lock

clean:  ## Remove what make made
	rm -rf .venv demo build dist *.egg-info
