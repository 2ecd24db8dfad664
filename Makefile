# make demo: everything on an example panel, in ./demo.  make test, make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := forecast pipelines

# make test, make test-fast and their order use tests/durations.json: pytest -n 2 --record-durations writes it.
.PHONY: demo test test-fast check docs ui server bench bench-accuracy bench-race clean replay

demo: $(VENV)/.installed-demo
	$(BIN)/forecast demo

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# What a person runs while working: no server, no browser, no training; under a minute.
test-fast: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --fast

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/lint-imports

# The site, in ./site; a page, heading or file that a link does not find is an error.
docs: $(VENV)/.installed
	PYTHONPATH=. NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

ui: $(VENV)/.installed-demo
	$(BIN)/forecast ui

# MLflow on PostgreSQL, in ./server.  make server ARGS='server.port=5001'
server: $(VENV)/.installed
	$(BIN)/forecast server $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

# Two months of nights on a simulated clock, in ./replay. make replay ARGS='replay.days=14 fit.max_minutes=1'
replay: $(VENV)/.installed-demo
	$(BIN)/forecast replay $(ARGS)

# make bench-accuracy ARGS='m4 --budget 120 --rows naive,closed,lstm,tuned'
bench-accuracy: $(VENV)/.installed
	$(BIN)/python -m benchmarks accuracy $(ARGS)

# make bench-race ARGS='--seconds 60,300'
bench-race: $(VENV)/.installed
	$(BIN)/python -m benchmarks race $(ARGS)

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist site demo replay mlflow.db gatecast.db mlruns

$(VENV)/.installed-demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[demo]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-input -c constraints.txt -e '.[all,dev]'
	touch $(VENV)/.installed-demo $@
