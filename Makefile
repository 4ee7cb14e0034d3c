# Every target sets itself up: a virtual environment, the pinned versions, this package in editable mode.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo test slow lint types wheel bench zoo clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/nnsight-vae demo --out demo-report

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# The type checker reads the package as it is installed, because adapters/ is nnsight_vae.adapters only then.
types: $(READY)
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --target build/types .
	cd build && MYPYPATH=types ../$(BIN)/mypy --config-file ../pyproject.toml -p nnsight_vae

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist . > /dev/null

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/bench_engine.py

# The bundled checkpoints and the pendulum's readout, from nothing (about 20 minutes).
zoo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m nnsight_vae.datasets.build_readouts
	OMP_NUM_THREADS=1 $(BIN)/python -m nnsight_vae.models.build_zoo

clean:
	rm -rf $(VENV) build dist *.egg-info demo-report
