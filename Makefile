# Everything happens in a local .venv; `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
export RAY_USAGE_STATS_ENABLED := 0
# A Ray of our own, whatever cluster this machine or its environment knows of.
export RAY_ADDRESS := local
# A busy machine needs more than the 5 s that Serve gives its HTTP proxy to start.
export RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S := 60

.PHONY: demo serve test check fix bench clean

demo: .venv/service  ## paint four images with the embedded model and write them to out/
	$(BIN)/python -m serve_app.demo

serve: .venv/service  ## keep the service running on http://127.0.0.1:8000
	$(BIN)/serve run configs/local.yaml

test: .venv/dev  ## run the whole suite
	$(BIN)/pytest

check: .venv/dev  ## verify formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: .venv/dev  ## repair what check finds, where that can be done by machine
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: .venv/service  ## print what fan-out, HTTP and previews cost on this machine, as ratios
	$(BIN)/python -m benchmarks.overhead

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/service: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# sd-prompt-reader alone: it asks for a window and an old Pillow, and what the tests take of it needs neither.
.venv/dev: .venv/service
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps sd-prompt-reader
	touch $@

clean:
	rm -rf .venv out
