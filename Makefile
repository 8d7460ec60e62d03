# The whole life of estd in six targets. Everything is built below .venv/ and .venv-dev/; nothing else is installed.
#   make demo    a fleet enrolls before your eyes           make check   types, lint, import contracts, notes
#   make test    the suite, against the wheel it builds     make bench   cost per certificate, as ratios
#   make lock    renew the lock files                       make load    Locust devices against a server

PYTHON ?= python3
SOURCES := $(shell find estd -type f -not -path '*/__pycache__/*') pyproject.toml README.md
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check bench load lock clean

demo: .venv/ready
	.venv/bin/estd demo $(ARGS)

test: .venv-dev/ready
	.venv-dev/bin/pytest $(ARGS)

check: .venv-dev/ready
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	.venv-dev/bin/mypy
	.venv-dev/bin/lint-imports
	.venv-dev/bin/python tests/check_notes.py

bench: .venv-dev/ready
	.venv-dev/bin/python loadtest/bench.py $(ARGS)

# UI=1: Locust's page. HERD=N: N devices in the same second. HOST=https://...: a server of yours; see ARGS=--help.
load: .venv-dev/ready
	.venv-dev/bin/python loadtest/load.py $(if $(UI),--ui) $(if $(HERD),--herd $(HERD)) $(if $(HOST),--host $(HOST)) $(ARGS)

# A wheel is built first and everything runs from it, so that what is tested is what is shipped.
.venv/ready: requirements.lock $(SOURCES)
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo 'estd needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)' >&2; exit 1; }
	test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --require-hashes --requirement requirements.lock
	rm -rf build/wheel && .venv/bin/pip wheel --quiet --no-deps --wheel-dir build/wheel .
	.venv/bin/pip install --quiet --no-deps --force-reinstall build/wheel/estd-*.whl
	touch $@

.venv-dev/ready: requirements-dev.lock $(SOURCES)
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo 'estd needs Python 3.11 or newer with its venv module (Debian: apt-get install python3-venv)' >&2; exit 1; }
	test -x .venv-dev/bin/pip || $(PYTHON) -m venv .venv-dev
	.venv-dev/bin/pip install --quiet --require-hashes --requirement requirements-dev.lock
	rm -rf build/wheel-dev && .venv-dev/bin/pip wheel --quiet --no-deps --wheel-dir build/wheel-dev .
	.venv-dev/bin/pip install --quiet --no-deps --force-reinstall build/wheel-dev/estd-*.whl
	touch $@

lock: .venv-dev/ready
	.venv-dev/bin/pip install --quiet uv
	.venv-dev/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --output-file requirements.lock pyproject.toml
	.venv-dev/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
	  --python-version 3.11 --extra dev --output-file requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv .venv-dev build
