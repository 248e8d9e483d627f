# `make` alone lists the targets. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin
LONG ?= long
# What speaks of the import and of reading what came of it.
LAKE := core/register core/register_property core/rollback core/repairing core/deltas core/views core/reading core/reading_commands \
	core/searching core/changes core/feed core/verifying core/proof core/ducklake dagster/end_to_end stack/checks_end_to_end \
	dagster/cancel_and_pause stack/failed_batches stack/rollback_end_to_end stack/lake_end_to_end stack/lake_s3
# A file is done by one process: its tests may share what is costly to make. In the order given, long ones
# come first: no process is left alone with one at the end.
PYTEST := $(RUN)/python -m pytest --dist loadfile
TESTS := kbo_pipeline_tests
AUDIT := build/audit
NEWEST := build/newest
AUDIT_SERVICE ?= pypi
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Python does not look for modules in the working directory first. The tests are found at the end of its path.
export PYTHONSAFEPATH = 1

.PHONY: help setup demo practice start test test-unit test-core test-dagster test-newest test-long test-lake test-browser chromium chaos soak year bench bench-small \
	bench-lake bench-search fuzz check audit clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(READY) ## install everything into .venv

$(READY): pyproject.toml setup.cfg constraints.txt
	@echo "installing everything into $(VENV); this takes 1 to 2 minutes"
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --constraint constraints.txt setuptools
	$(RUN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	echo '$(CURDIR)' > "$$($(RUN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kbo_pipeline_tests.pth"
	touch $(READY)

demo: $(READY) ## import made-up extracts and show what is in the register
	$(RUN)/python -m kbo_pipeline.commands.demo

practice: $(READY) ## import a made-up extract of which two batches fail, to practise the repair
	$(RUN)/python -m kbo_pipeline.commands.demo practice

start: $(READY) ## run web UI, daemon and code location until Ctrl-C
	$(RUN)/kbo start

test: $(READY) ## run the tests, but for those of whole stacks
	$(PYTEST) -n 3 --no-loadscope-reorder -m "not long" $(TESTS)/unit $(TESTS)/core $(TESTS)/dagster

test-unit: $(READY) ## run the tests of pure functions and of the repository itself
	$(PYTEST) -n 2 -m "not long" $(TESTS)/unit

test-core: $(READY) ## run the tests of the core: ZIPs, DuckDB, HTTP, no Dagster
	$(PYTEST) -n 3 -m "not long" $(TESTS)/core

test-dagster: $(READY) ## run the tests of assets, sensors and commands, one whole import among them
	$(PYTEST) -n 3 --no-loadscope-reorder -m "not long" $(TESTS)/dagster

test-newest: ## run the tests with the newest of everything that pyproject.toml allows
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade --upgrade-strategy eager setuptools --editable '.[dev]'
	echo '$(CURDIR)' > "$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kbo_pipeline_tests.pth"
	$(NEWEST)/bin/pip freeze --exclude kbo_pipeline | diff constraints.txt - || true
	touch $(NEWEST)/.ready
	$(MAKE) test VENV=$(NEWEST)

test-long: $(READY) ## run the long tests: whole stacks that die, wait, and come back
	$(PYTEST) -n 3 --no-loadscope-reorder -m "$(LONG)" $(TESTS)/core $(TESTS)/stack $(TESTS)/dagster

test-lake: $(READY) ## run the tests of the import with the register in a DuckLake
	TEST_DATABASE=ducklake $(PYTEST) -n 2 --timeout 1800 $(foreach t,$(LAKE),$(TESTS)/$(dir $(t))test_$(notdir $(t)).py)

# In a directory of its own: a pytest that begins closes the usual one to the user of another's PostgreSQL.
test-browser: $(READY) chromium ## click in the web UI with chromium; pictures are in build/screenshots
	root=$$(mktemp -d) && trap 'rm -rf "$$root"' EXIT && \
		PYTEST_DEBUG_TEMPROOT=$$root $(RUN)/python -m pytest -m browser $(TESTS)/browser

chromium:
	@for name in chromium chromium-browser google-chrome; do \
		if command -v $$name >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "make test-browser: no chromium on the PATH; install it: sudo apt-get install chromium" >&2; \
		exit 1; \
	fi; \
	apt-get update && apt-get install --yes --no-install-recommends chromium

chaos: $(READY) ## let everything die, and write docs/reliability.md
	$(RUN)/python -m kbo_pipeline_tests.tools.chaos --results docs/reliability.jsonl \
		--write docs/reliability.md $(CHAOS)

year: $(READY) ## how long pages and sensors take after 400 daily extracts
	$(RUN)/python -m pytest -s -m rare $(TESTS)/stack/test_year.py

soak: $(READY) ## a writer that is killed and readers on a DuckLake, 15 minutes: SOAK="--minutes 2"
	$(RUN)/python -m kbo_pipeline_tests.tools.soak $(SOAK)

bench: $(READY) ## measure everything at full size, an hour or two; writes docs/performance.md
	$(RUN)/pip install --quiet --constraint constraints.txt cbe
	$(RUN)/python -m kbo_pipeline_tests.tools.bench --write docs/performance.md $(BENCH)

bench-small: $(READY) ## measure a hundredth of it, and fail when it got slower
	$(RUN)/python -m kbo_pipeline_tests.tools.bench.small

bench-lake: $(READY) ## measure a DuckLake; writes into docs/scale.md
	$(RUN)/python -m kbo_pipeline_tests.tools.bench.lake --write docs/scale.md $(BENCH)

bench-search: $(READY) ## 10,000 misspelt queries with known answers; fails if too few find theirs: SEARCH="--enterprises 50000"
	$(RUN)/python -m kbo_pipeline_tests.tools.bench.search $(SEARCH)

fuzz: $(READY) ## look for bytes that ZIP and CSV reading stumble over: FUZZ="zip --runs 1000000"
	$(RUN)/pip install --quiet --constraint constraints.txt atheris
	$(RUN)/python -m kbo_pipeline_tests.tools.fuzz $(or $(FUZZ),staging --runs 5000)

check: $(READY) ## format, lint, imports, types
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/lint-imports
	$(RUN)/mypy

audit: ## ask whether what constraints.txt pins has known vulnerabilities
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet pip-audit==2.10.1
	$(AUDIT)/bin/pip-audit --strict --vulnerability-service $(AUDIT_SERVICE) \
		--no-deps --disable-pip --requirement constraints.txt

clean: ## remove what was installed; data stay
	rm -rf $(VENV) build dist *.egg-info
