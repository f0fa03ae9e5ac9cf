# serve: install and run the three services on the demo model, ask it one question
# stop:  drain and stop them        test: the whole test suite
# bench: benchmark of this machine  lint: format, style and types

PYTHON    ?= python3
VENV      ?= .venv
PORT_BASE ?= 8000

# Without an NVIDIA GPU the CPU build of torch is enough: a tenth of the download. Where its index
# cannot be reached, the default one serves.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check

.PHONY: serve stop test bench lint
.DELETE_ON_ERROR:

serve: $(VENV)/.serve-installed
	$(BIN)/python start_app.py --all --cb_server_model_id demo --sb_server_model_id demo \
		--client_port $(PORT_BASE) \
		--cb_server_port $$(($(PORT_BASE) + 1)) \
		--sb_server_port $$(($(PORT_BASE) + 2))
	@$(BIN)/python -m utils.ask http://127.0.0.1:$(PORT_BASE)

stop:
	@if [ -x $(BIN)/python ]; then $(BIN)/python start_app.py --stop; else echo "nothing is running"; fi

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.serve-installed
	$(BIN)/python -m benchmarks.compare

lint: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; give it as PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve-installed: client_requirements.txt server_requirements.txt | $(BIN)/pip
	$(if $(HAS_GPU),,$(PIP) --no-deps --timeout 30 --retries 1 --extra-index-url $(TORCH_CPU_INDEX) \
		"$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' server_requirements.txt)")
	$(PIP) -r server_requirements.txt
	@touch $@

$(VENV)/.test-installed: test_requirements.txt $(VENV)/.serve-installed
	$(PIP) -r test_requirements.txt
	@touch $@
