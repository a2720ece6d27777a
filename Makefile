# Two commands: `make demo` trains a classifier, `make test` runs the tests. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= digits

.PHONY: env demo test test-fast test-long test-gpu check format golden docs bench clean

env: $(VENV)/.ready

# uv makes this a matter of seconds; where it cannot be had, pip does the same more slowly.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt $(wildcard native/*.[ch])
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt uv || true
	@if $(BIN)/python -m uv --version >/dev/null 2>&1; then \
	    $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'; \
	else \
	    $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'; \
	fi
	@touch $@

demo: env
	$(BIN)/stagewright demo $(DATA)

test: env
	$(BIN)/pytest -n 2

test-fast: env
	$(BIN)/pytest -n 2 -m "not slow and not long"

# The long forms: a thousand signals, three hundred failing operations, 50,000 mutated images, 50,000 damaged files. Three hours.
test-long: env
	$(BIN)/pytest -m long
	$(BIN)/python benchmarks/study_storm.py --work findings/study-storm --kills 20
	$(BIN)/python benchmarks/study_storm.py --work findings/study-storm-server --kills 20 --server
	$(BIN)/python benchmarks/storm.py signals --count 1000
	$(BIN)/python benchmarks/storm.py operations --count 300
	$(BIN)/python benchmarks/finishes.py --count 50
	$(BIN)/python benchmarks/fuzz_images.py --count 50000 --jobs 2 --findings findings $(addprefix --corpus ,$(wildcard ../shared/data/awkward-images.zip))
	$(BIN)/python native/fuzz.py --count 50000 --jobs 2 --findings findings
	$(BIN)/python tests/fuzzing/run.py --count 50000

test-gpu: env
	$(BIN)/pytest -m gpu

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

golden: env
	STAGEWRIGHT_GOLDEN=write $(BIN)/pytest -q tests/plan/test_golden.py

# The pages that follow from the code: fields of a recipe, errors, the drawing of the layers.
docs: env
	$(BIN)/python docs/generate.py

bench: env
	$(BIN)/python benchmarks/loop.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
