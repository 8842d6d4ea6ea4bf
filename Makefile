# make demo      the main job, end to end    make test   the whole suite, on two cores
# make parity    the networks beside those   make lint   style and types
#                of timm, keras.applications make clean  removes what make made
#                and pytorchcv, and on JAX
# make clients   the same bundles in Python, TFLite Micro, MediaPipe, and a page in Chromium
# make docs      the documentation, into build/docs
# make generate  the files that are made from the table of architectures
# make format    brings the code into shape
#
# PYTHON chooses the interpreter, VENV the environment: make test PYTHON=python3.12 VENV=/tmp/v312

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Modules are compiled when they are first imported; most never are.
INSTALL := install --quiet --disable-pip-version-check --no-compile
MEDIAPIPE := $(VENV)-mediapipe
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Tests of the suite that need PyTorch or JAX, and are skipped where those are not installed.
WITH_PEERS := tests/test_preprocessing.py::test_jax_and_torch_are_read_as_numpy \
	tests/test_normalization.py::test_on_jax_it_is_the_stock_layer
JAX_TESTS := tests/test_blocks.py tests/parity/test_timm.py

.PHONY: demo test parity clients docs generate lint format clean

demo: $(VENV)/.installed
	@$(BIN)/python examples/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 20 \
		--ignore tests/parity --ignore tests/clients

# The builders need no TensorFlow: tests of the blocks and the comparisons with timm pass on JAX.
parity: $(VENV)/.parity
	$(BIN)/python -m pytest -n 2 --dist load tests/parity $(WITH_PEERS)
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 --dist load -m 'not large' $(JAX_TESTS)

# MediaPipe's dependencies exclude TFMOT's: the bundles are made in one environment and opened in
# another. The page is opened in Debian's Chromium, or the one that CHROMIUM names.
clients: export BUNDLES = build/clients
clients: $(VENV)/.installed $(MEDIAPIPE)/.installed \
		examples/web/node_modules/.package-lock.json tests/clients/node_modules/.package-lock.json
	rm -rf $(BUNDLES)
	$(BIN)/python tests/clients/make_bundles.py $(BUNDLES)
	$(BIN)/python -m pytest tests/clients --ignore tests/clients/test_mediapipe.py
	$(MEDIAPIPE)/bin/python -m pytest tests/clients/test_mediapipe.py --confcutdir tests/clients

%/node_modules/.package-lock.json: %/package-lock.json
	npm ci --silent --prefix $*

docs: $(VENV)/.docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs build/docs

generate: $(VENV)/.installed
	$(BIN)/python tests/generate.py

# Types are checked on an installed copy, where keras_resnet.export lies in its place.
lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p keras_resnet

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("keras_resnet needs Python 3.11, 3.12 or 3.13; this is %d.%d. Choose another: make PYTHON=python3.12 ..." % v)'
	@echo "Installing into $(VENV); this takes a minute or two, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip $(INSTALL) "setuptools>=77" wheel
	@$(BIN)/pip $(INSTALL) --editable '.[test,dev]'
	@touch $@

$(VENV)/.parity: $(VENV)/.installed
	@echo "Installing the peers (PyTorch, timm, pytorchcv) and JAX; this takes a minute, once."
	@$(BIN)/pip $(INSTALL) --editable '.[parity]'
	@touch $@

$(VENV)/.docs: $(VENV)/.installed
	@$(BIN)/pip $(INSTALL) --editable '.[docs]'
	@touch $@

$(MEDIAPIPE)/.mediapipe:
	@echo "Installing MediaPipe into $(MEDIAPIPE); 600 MB, once."
	@$(PYTHON) -m venv $(MEDIAPIPE)
	@$(MEDIAPIPE)/bin/pip $(INSTALL) "setuptools>=77" wheel \
		mediapipe==1.2.2 ai-edge-litert numpy Pillow pytest
	@touch $@

$(MEDIAPIPE)/.installed: $(MEDIAPIPE)/.mediapipe setup.cfg pyproject.toml
	@$(MEDIAPIPE)/bin/pip $(INSTALL) --no-deps \
		--no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) $(MEDIAPIPE) build dist runs/demo *.egg-info
	rm -rf examples/web/node_modules tests/clients/node_modules docs/api
