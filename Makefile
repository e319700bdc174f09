# Every target makes, mends or refreshes .venv by itself. GNU make 3.81, which is what macOS has, reads this file.
PYTHON ?= python3

# Another Python is looked for only where nobody has chosen one.
PYTHONS = $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.13 python3.12 python3.11)

# "found PATH", or why not. Each is started, because pyenv has commands for versions that do not run; the first one's
# fault is the one told, because that is the one the user knows of. An activated .venv of ours cannot remake itself.
FOUND = $(shell PATH="$(subst $(CURDIR)/.venv/bin:,,$(PATH))"; \
	for python in $(PYTHONS); do \
	    version=`$$python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null` || continue; \
	    case $$version in \
	    (3.11|3.12|3.13) \
	        $$python -c 'import ensurepip, venv' 2>/dev/null && echo "found `command -v $$python`" && exit; \
	        fault="has no venv; on Debian and Ubuntu: apt install python$$version-venv" ;; \
	    (2.*|3.?|3.10) fault="is too old: $(WANTED)" ;; \
	    (*) fault="is too new: $(WANTED)" ;; \
	    esac; \
	    why=$${why:-"Python $$version $$fault"}; \
	done; \
	echo "$${why:-$(firstword $(PYTHONS)) does not run here: $(WANTED)}")
WANTED = Convoy needs 3.11 to 3.13; install one and say make PYTHON=python3.12

# uv does not read pip's settings: a machine whose pip goes to a mirror has its uv go there too.
ifneq ($(PIP_INDEX_URL),)
ifeq ($(UV_DEFAULT_INDEX)$(UV_INDEX_URL),)
export UV_DEFAULT_INDEX = $(PIP_INDEX_URL)
endif
endif

# In up to four processes, file by file: what a file sets up for all of its tests is set up once.
PYTEST = .venv/bin/pytest --numprocesses logical --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test slow lint bench docs up env pin audit clean lock

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*  ## /\1 /p' Makefile | while read -r name text; do printf 'make %-6s %s\n' "$$name" "$$text"; done

demo: .venv/.stamp  ## the whole pipeline on the built-in images, from labelled images to a deployed endpoint
	.venv/bin/convoy run

test: .venv/.stamp  ## the quick tests
	$(PYTEST)

slow: .venv/.stamp  ## the long tests, less those that need Docker, a GPU or a browser
	$(PYTEST) -m 'slow and not docker and not gpu and not browser' --durations=10

lint: .venv/.stamp  ## ruff and mypy
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

bench: .venv/.stamp  ## the measurements, each of this project and its peer in the same run
	.venv/bin/python -m benchmarks

docs: .venv/.stamp  ## README.md and docs/ as a site, in outputs/docs
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict
	@echo "outputs/docs/index.html is the first page"

up: .venv/.stamp  ## the servers: the pages of Prefect and MLflow, and flows that wait to be triggered
	.venv/bin/convoy up

env:  ## secrets for docker-compose.yml, in .env; one that is there stays
	@sh serving/stack/env.sh .env

pin:  ## the digests of the stack's images into .env, from their registries
	@sh serving/stack/pin.sh .env

audit: .venv/.stamp  ## known weaknesses of the packages in requirements.lock, by OSV
	@.ci/audit

clean:  ## remove .venv, caches and build leftovers; data and outputs stay
	rm -rf .venv build dist convoy.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache data/__pycache__
	find pipelines serving models core tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Pins that still fit stay as they are; UPGRADE=--upgrade lifts all of them, UPGRADE=--upgrade-package=torch one.
lock: .venv/.stamp  ## renew requirements.lock from pyproject.toml (UPGRADE=--upgrade for newer versions)
	UV_CUSTOM_COMPILE_COMMAND="make lock" .venv/bin/uv pip compile --quiet --universal --python-version 3.11 \
	    --generate-hashes --group dev --group docs --group stack $(UPGRADE) --output-file requirements.lock pyproject.toml

# The stamp is written last and holds the folder's path. Without it, with another path (the folder was moved, and the
# scripts name the old one) or without its Python (it was upgraded away), .venv is made anew. The editable install is a
# plain entry of sys.path: setuptools' import hook would lend our modules to a packed Bento that lacks them.
ifneq ($(shell test -x .venv/bin/python && cat .venv/.stamp 2>/dev/null),$(CURDIR))
.PHONY: .venv/.stamp
new-venv = $(eval PLACE := $(FOUND))$(if $(filter found,$(firstword $(PLACE))),$(make-venv),$(error $(PLACE)))
endif
define make-venv
"$(wordlist 2,99,$(PLACE))" -m venv --clear .venv
	sed -n '/^uv==/,/# via/p' requirements.lock | .venv/bin/python -m pip install --quiet --require-hashes --no-deps -r /dev/stdin
endef

.venv/.stamp: requirements.lock pyproject.toml
	@rm -f $@
	$(new-venv)
	@echo "making .venv from requirements.lock; the first time downloads some 3 GB"
	[ -t 2 ] || quiet=--quiet; .venv/bin/uv pip sync $$quiet --python .venv/bin/python --require-hashes requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation \
	    --config-settings editable_mode=compat --editable .
	@echo "$(CURDIR)" > $@
