# Everything a developer does with archid. Each target first makes .venv if it is missing or old.

PY := .venv/bin/python
# The files of tests run side by side; each has its own folders, ports and hosts. There are more
# workers than cores, since tests wait for disks and daemons. pytest-xdist would take the files with
# few tests last, and those last longest: in their own order the short ones of tests/unit come last.
WORKERS := $(shell echo $$(( ($$(nproc) * 3 + 1) / 2 )))
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BENCH_PEERS := syncthing rsync nginx-light casync curl openssl openssh-client openssh-server iproute2 nftables iperf3 iputils-ping

.PHONY: help demo install uninstall test test-long lint format bench bench-peers lock lock-check venv clean

help: ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

venv: ## make .venv with the locked dependencies
	@.ci/bootstrap

demo: venv ## run a real fleet on this machine and watch it; DEMO_ARGS="--json" or "--keep"
	@$(PY) -m tests.demo $(DEMO_ARGS)

install: ## install or upgrade archid and its service; PREFIX=/usr/local DESTDIR= ROLE=central|repo|ice
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" ROLE="$(ROLE)" PYTHON="$(PYTHON)" systemd/install install

uninstall: ## remove them; configuration, state and scripts stay unless PURGE=1
	@PREFIX="$(PREFIX)" DESTDIR="$(DESTDIR)" PURGE="$(PURGE)" systemd/install uninstall

test: venv ## run the tests that take less than a few minutes together; PYTEST_ARGS="-k name"
	$(PY) -m pytest $(SIDE_BY_SIDE) -m "not long" $(PYTEST_ARGS)

test-long: venv ## run every test
	$(PY) -m pytest $(SIDE_BY_SIDE) $(PYTEST_ARGS)

lint: venv ## check style, types, the package map and the generated tables of SPEC.md
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) .venv/bin/lint-imports
	$(PY) -m protocol.spec_tables --check

format: venv ## bring the code into the project's style
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: ## measure, into bench/results/; BENCH_ARGS="pair --full" for one, and the sizes of the goals
	@.ci/bootstrap bench
	$(PY) -m bench --results bench/results $(BENCH_ARGS)

bench-peers: ## install what archid is measured beside (Debian, as root; libtorrent into .venv)
	apt-get install -y --no-install-recommends $(BENCH_PEERS)
	@.ci/bootstrap bench

lock: venv ## make the locks again after a change of pyproject.toml; LOCK_ARGS=--upgrade for newer versions
	.ci/locks write $(LOCK_ARGS)

lock-check: venv ## check that the locks are what pyproject.toml asks for
	.ci/locks check

clean: ## remove .venv and what the tools keep
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .demo
