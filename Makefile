# `make demo` and `make test` are the two commands; both make .venv first.
.DEFAULT_GOAL := help
.PHONY: help setup demo fast test test-slow test-real-size test-gpu gpu-wheels check docs clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## make .venv with everything (client, converter, Triton server, tests)
	@sh scripts/setup.sh

demo: setup ## convert a tiny checkpoint, start a real Triton server, ask about a real video
	@.venv/bin/vl2 demo

test: setup ## all tests, the real server included
	@.venv/bin/python -m pytest

fast: setup ## the tests that need neither a server nor torch
	@.venv/bin/python -m pytest --without-torch -m "not slow and not installs" tests/unit tests/contract

test-slow: setup ## what takes minutes or environments of its own: other Pillows, real decord, the recipes' products
	@.venv/bin/python -m pytest -m slow

test-real-size: setup ## conversion at the published sizes, random weights (minutes, 8 GB of memory)
	@.venv/bin/python -m pytest tests/real_size -s

test-gpu: ## on a machine with a GPU; PART=correct, speed or tensorrt, at most 8 minutes each
	@sh scripts/test_gpu.sh $(PART)

gpu-wheels: setup ## build/gpu/wheels, for a GPU machine of Python GPU_PYTHON that has no network
	@.venv/bin/python -m pip download --quiet --only-binary=:all: --python-version $(or $(GPU_PYTHON),3.12) \
		--dest build/gpu/wheels -r scripts/gpu_requirements.txt "numpy<2"

check: setup ## format, lint, types and all tests
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest

docs: setup ## build the documentation as a site, build/site/index.html
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q && echo build/site/index.html

clean: ## remove converted checkpoints (build/*/) and caches
	@rm -rf build/*/ .pytest_cache .ruff_cache .mypy_cache
