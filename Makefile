# Every target sets up .venv from constraints.txt when it is missing or older than its inputs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := $(VENV)/.installed-demo
STAMP  := $(VENV)/.installed
PEERS  := .peers
# Without its AMX kernels, which give wrong logits for layers as narrow as those of the tests.
LLAMA_CPP := $(PEERS)/llama.cpp
OUT    ?= build
# A file of tests stays with one worker: its tests share what they make.
PYTEST := $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile

.PHONY: demo test test-slow test-peers test-gpu peers check format docs bench clean

$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[demo]'
	touch $@

$(STAMP): $(DEMO)
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[dev]'
	touch $@

# Nothing here needs an install script; onnxruntime-node's own would fetch CUDA libraries.
$(PEERS)/.installed: $(addprefix tests/peers/,package.json package-lock.json optimum-requirements.txt)
	mkdir -p $(PEERS)
	cp tests/peers/package.json tests/peers/package-lock.json $(PEERS)
	npm ci --prefix $(PEERS) --ignore-scripts --no-audit --no-fund
	$(PYTHON) -m venv --clear $(PEERS)/optimum
	$(PEERS)/optimum/bin/python -m pip install --quiet --progress-bar off -r tests/peers/optimum-requirements.txt
	mkdir -p $(LLAMA_CPP)
	cp $(PEERS)/node_modules/@node-llama-cpp/*/bins/*/* $(LLAMA_CPP)
	rm -f $(LLAMA_CPP)/libggml-cpu-sapphirerapids.*
	touch $@

demo: $(DEMO)  ## build the built-in recipe review-sentiment into build/
	$(BIN)/edgekit build review-sentiment --out $(OUT)

test: $(STAMP)  ## the default tests
	$(PYTEST) -m "not slow and not gpu and not runtime"

test-slow: $(STAMP)  ## real models and foreign runtimes
	$(PYTEST) -m "(slow or runtime) and not gpu"

test-peers: $(STAMP) $(PEERS)/.installed  ## the default tests, and those that open files in foreign tools
	EDGEKIT_LLAMA_CPP=$(CURDIR)/$(LLAMA_CPP) $(PYTEST) -m "not slow and not gpu"

test-gpu: $(STAMP)  ## what is special on a GPU; needs one, and a torch that knows it
	EDGEKIT_TEST_GPU=1 $(BIN)/python -m pytest -m gpu

peers: $(PEERS)/.installed  ## transformers.js, llama.cpp and optimum-onnx in .peers; needs node and npm

check: $(STAMP)  ## lint, format, types, layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## generated pages: the schema of build.json, the command line reference
	$(BIN)/python docs/generate.py

bench: $(STAMP)  ## edgekit against its peers; writes benchmarks/results/
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf $(VENV) $(PEERS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
