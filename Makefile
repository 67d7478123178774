# `make help` says what there is. Python and its packages live in .venv, what is built in build/.
VENV := .venv
PYTHON := $(VENV)/bin/python
BUILT := build/.python-packages
CONFIG := /etc/shifter/udiRoot.conf
LAUNCHER := build/node/bin/shifter

FERRETDB := build/bin/ferretdb

.PHONY: help build run test bench validate clean
.DELETE_ON_ERROR:

help:
	@echo 'make build                 everything from a fresh machine (Debian, root); seconds when nothing changed'
	@echo 'make run [IMAGE=NAME] [NODES=N]  the main job: a site, a pull, a container run by an ordinary user; a job on N nodes'
	@echo 'make test                  the whole suite: style, types, tests in parallel'
	@echo 'make bench [ONLY=PREFIX]   measurements, as a table and in build/bench.json'
	@echo 'make validate              predicted launches against measured ones: docs/validation.svg'
	@echo 'make clean                 removes what was built'

build: $(BUILT) $(LAUNCHER)
	@etc/install-packages

# The packages come first: they bring Python's venv and the compiler.
$(BUILT): pyproject.toml etc/packages
	@etc/install-packages
	@mkdir -p build
	@[ -x $(PYTHON) ] || "$$(etc/find-python)" -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check --root-user-action=ignore -e '.[postgres,plots,test,lint]' 'tox>=4.11'
	@touch $@

# For a site's nodes: the programs that `make run` and the tests use are made for each site in a directory anew.
$(LAUNCHER): $(BUILT) $(wildcard runtime/*.py runtime/launcher/* runtime/launcher/user/*)
	@$(PYTHON) -m runtime.install build/node $(CONFIG) --no-setuid
	@touch $@

run: build
	@$(PYTHON) -m sim.cli demo --image '$(IMAGE)' $(if $(DIR),--dir '$(DIR)') $(if $(LOCATION_URL),--location-url '$(LOCATION_URL)') $(if $(NODES),--nodes '$(NODES)')

# A database for tests alone; without it they are skipped, or fail with CI=true.
$(FERRETDB): $(BUILT) $(wildcard tests/catalog/ferretdb/*) etc/build-ferretdb
	-@etc/build-ferretdb $(CURDIR)/$(PYTHON) $@

test: build $(FERRETDB)
	@status=0; \
	$(VENV)/bin/tox run -qq -e lint || status=1; \
	$(VENV)/bin/tox run -qq -e suite || status=1; \
	exit $$status

bench: build
	@$(PYTHON) -m bench $(ONLY)

# Predicted launches against measured ones on emulated nodes; takes minutes, and the machine should be idle.
validate: build
	@$(PYTHON) -m sim.cli validate --html build/validate.html --svg docs/validation.svg --markdown docs/validation.md --json build/validation.json

clean:
	rm -rf build .tox $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis shifter.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
