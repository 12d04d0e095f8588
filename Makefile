# Everything happens in a local .venv; `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
# A Ray of our own, whatever cluster this machine or its environment knows of.
export RAY_ADDRESS := local
# A busy machine needs more than the 5 s that Serve gives its HTTP proxy to start.
export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S := 60
# The first import of a module compiles it. Where the environment forbids to keep that, every process would do it again.
unexport PYTHONDONTWRITEBYTECODE

# What the environment says of the way to a package index; its own names alone, whatever they hold.
WAYS := ALL_PROXY HTTP_PROXY HTTPS_PROXY all_proxy http_proxy https_proxy SSL_CERT_FILE SSL_CERT_DIR
WAYS := $(strip $(foreach name,$(WAYS),$(if $(findstring environment,$(origin $(name))),$(name))))
# Compiling every module took half of the time to install, and a quarter of them are ever imported.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# That way is taken first. It may lead nowhere (a proxy that is gone, SOCKS without its package), and none be needed.
install = $(PIP) $(1)$(if $(WAYS), || { $(again); env $(WAYS:%=-u %) $(PIP) $(1); })
again = echo 'Installing once more without $(WAYS) ...'

.PHONY: demo serve test clients check fix docs bench soak clean

demo: .venv/service  ## generate four images with the embedded model and write them to out/
	$(BIN)/python -m serve_app.demo

serve: .venv/service  ## keep the service running on http://127.0.0.1:8000
	$(BIN)/python -m serve_app.serve configs/local.yaml

test: .venv/dev  ## run the whole suite
	$(BIN)/pytest --numprocesses auto --durations 10

clients: .venv/service .clients/installed  ## try other people's clients on the running service and print how each call went (needs node)
	$(BIN)/python -m tests.clients.run

check: .venv/dev  ## verify formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/dev  ## repair what check finds, where that can be done by machine
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: .venv/docs  ## build the documentation into out/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/service  ## print what fan-out, HTTP and previews cost on this machine, as ratios
	$(BIN)/python -m benchmarks.overhead

soak: .venv/service  ## let clients leave and parts of the service die, and count what is lost (under 20 minutes)
	$(BIN)/python -m benchmarks.soak

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/service: .venv/bin/python pyproject.toml constraints.txt
	$(call install,"pip>=25.1")
	$(call install,-e .)
	touch $@

# sd-prompt-reader alone: it asks for a window and an old Pillow, and what the tests take of it needs neither.
.venv/dev: .venv/service
	$(call install,--group dev)
	$(call install,--no-deps sd-prompt-reader)
	touch $@

# Clients of other people, away from the service's packages; npm's folder is where node looks for it.
.clients/installed: tests/clients/requirements.txt tests/clients/package.json
	$(PYTHON) -m venv .clients
	.clients/bin/python -m pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
	npm install --prefix tests/clients --no-package-lock --no-audit --no-fund --loglevel error
	touch $@

# The site's settings come from the service's own models.
.venv/docs: .venv/service
	$(call install,--group docs)
	touch $@

clean:
	rm -rf .venv .clients tests/clients/node_modules out
