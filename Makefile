# What a person or a machine does with this tree; each target prepares what it needs by itself.
#
# Needs Python 3.11 or newer with venv and pip, nothing else.  Another one: make test PYTHON=python3.12

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin/python -m

.PHONY: help demo man test test-go test-systemd soak bundle check format clean

help:
	@echo 'make demo    a whole transfer between two embedded S3 servers, proved at the end'
	@echo 'make test    all tests'
	@echo 'make test-go the road between servers built with `go install`, and Prometheus on our metrics and rules'
	@echo 'make test-systemd  the installed service, as root on a machine that systemd runs: docs/INSTALL.md'
	@echo 'make bundle  dist/s5jtd-VERSION-linux-{amd64,arm64}.tar.gz, to install without network'
	@echo 'make man     build/man/s5jtd.8 and the other manual pages, and completions/ for shells'
	@echo 'make soak    power cuts, kills and crash points, as many as asked: CUTS=1000 KILLS=200 (as root)'
	@echo 'make check   format, lint and types'
	@echo 'make format  put the code into the one format'
	@echo 'make clean   remove what these commands made'

demo: $(VENV)/demo.stamp
	$(VENV)/bin/s5jtd demo

# What fails is tried up to twice more, because real servers and processes share two cores; the summary tells of it.
test: $(VENV)/test.stamp
	$(RUN) pytest -n 4 --dist worksteal --reruns 2 $(TESTS)

# Servers and judges that no Python package brings; they take a while to build, once.
test-go: $(VENV)/test.stamp
	GOBIN=$(abspath $(VENV)/go) go install github.com/versity/versitygw/cmd/versitygw@latest
	GOBIN=$(abspath $(VENV)/go) go install github.com/minio/minio@latest
	cd tests/promcheck && GOBIN=$(abspath $(VENV)/go) go install .
	$(RUN) pytest tests/test_go_servers.py

# Changes the machine it runs on: it installs s5jtd from the bundle, and removes it again.
test-systemd: $(VENV)/test.stamp
	S5JTD_SYSTEMD=1 $(RUN) pytest tests/systemd

man: $(VENV)/test.stamp
	$(VENV)/bin/python release/man.py build/man
	$(RUN) tests.completions

bundle: $(VENV)/test.stamp
	$(VENV)/bin/python release/bundle.py $(ARCH)

# Hours, if one lets it; `make soak CUTS=200 SOAK='--minutes 10 --no-sweep'` for a taste.
soak: $(VENV)/test.stamp
	$(RUN) tests.soak --cuts $(or $(CUTS),1000) --kills $(or $(KILLS),200) $(SOAK)

check: $(VENV)/test.stamp
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy

format: $(VENV)/test.stamp
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

# A stamp is older than pyproject.toml when what is installed may no longer be what is asked for.
$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(RUN) pip install --quiet --disable-pip-version-check --editable '.[api,demo,test]'
	@touch $@

$(VENV)/bin/python:
	@test -n '$(PYTHON)' || { \
		echo 's5jtd needs Python 3.11 or newer, and there is none on this machine.' >&2; \
		echo 'hint: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "s5jtd needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1)." >&2; \
		echo 'hint: name another: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
