# `make` alone lists the targets. Everything is installed into .venv; nothing else is touched.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RUN := $(VENV)/bin
LONG ?= long
# What speaks of the import and of reading what came of it.
LAKE := end_to_end failed_batches rollback_end_to_end checks_end_to_end cancel_and_pause \
	register register_property rollback views reading reading_commands \
	searching changes verifying ducklake lake_end_to_end lake_s3
# What speaks of runs that apply batches: with several workers too.
LAKE_WORKERS := end_to_end failed_batches cancel_and_pause
AUDIT := build/audit
NEWEST := build/newest
AUDIT_SERVICE ?= pypi
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Python does not look for modules in the working directory first. The tests are found at the end of its path.
export PYTHONSAFEPATH = 1

.PHONY: help setup demo practice start test test-newest test-long test-lake test-browser chromium chaos soak year bench bench-small \
	bench-lake fuzz check audit clean

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
	$(RUN)/python -m kbo_pipeline.commands.practice

start: $(READY) ## run web UI, daemon and code location until Ctrl-C
	$(RUN)/kbo start

test: $(READY) ## run the tests, but for the long ones
	$(RUN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not long and not browser"

test-newest: ## run the tests with the newest of everything that pyproject.toml allows
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet --upgrade --upgrade-strategy eager setuptools --editable '.[dev]'
	echo '$(CURDIR)' > "$$($(NEWEST)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/kbo_pipeline_tests.pth"
	$(NEWEST)/bin/pip freeze --exclude kbo_pipeline | diff constraints.txt - || true
	touch $(NEWEST)/.ready
	$(MAKE) test VENV=$(NEWEST)

test-long: $(READY) ## run the long tests: whole stacks that die, wait, and come back
	$(RUN)/python -m pytest -n 3 --dist loadfile -m "$(LONG)"

test-lake: $(READY) ## run the tests of the import with the register in a DuckLake
	TEST_DATABASE=ducklake $(RUN)/python -m pytest -n 2 --dist loadfile --timeout 1800 \
		$(LAKE:%=kbo_pipeline_tests/test_%.py)
	TEST_DATABASE=ducklake TEST_APPLY_WORKERS=2 $(RUN)/python -m pytest -n 2 --dist loadfile --timeout 1800 \
		$(LAKE_WORKERS:%=kbo_pipeline_tests/test_%.py)

test-browser: $(READY) chromium ## click in the web UI with chromium; pictures are in build/screenshots
	$(RUN)/python -m pytest -m browser kbo_pipeline_tests/test_browser.py

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
	$(RUN)/python -m kbo_pipeline_tests.chaos --results docs/reliability.jsonl \
		--write docs/reliability.md $(CHAOS)

year: $(READY) ## how long pages and sensors take after 400 daily extracts
	$(RUN)/python -m pytest -s -m rare kbo_pipeline_tests/test_year.py

soak: $(READY) ## workers and readers on a DuckLake, some killed, 15 minutes: SOAK="--minutes 2"
	$(RUN)/python -m kbo_pipeline_tests.soak $(SOAK)

bench: $(READY) ## measure everything at full size, an hour or two; writes docs/performance.md
	$(RUN)/pip install --quiet --constraint constraints.txt cbe
	$(RUN)/python -m kbo_pipeline_tests.bench --write docs/performance.md $(BENCH)

bench-small: $(READY) ## measure a hundredth of it, and fail when it got slower
	$(RUN)/python -m kbo_pipeline_tests.bench.small

bench-lake: $(READY) ## measure a DuckLake with 1, 2 and 4 workers; writes into docs/scale.md
	$(RUN)/python -m kbo_pipeline_tests.bench.lake --write docs/scale.md $(BENCH)

fuzz: $(READY) ## look for bytes that ZIP and CSV reading stumble over: FUZZ="zip --runs 1000000"
	$(RUN)/pip install --quiet --constraint constraints.txt atheris
	$(RUN)/python -m kbo_pipeline_tests.fuzz $(or $(FUZZ),staging --runs 5000)

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
