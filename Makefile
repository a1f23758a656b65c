# Start with `make demo` or `make test`; both create .venv first.
PYTEST = .venv/bin/python -m pytest
# Tests wait for servers a third of their time, so two cores serve three processes; each may need 4 GB.
TEST_PROCESSES = $(shell awk '/MemTotal/ {print ($$2 > 15000000) ? 3 : 2}' /proc/meminfo)
SHARED = -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder  # tests/run_options.py
MEASURES = $(filter-out %/measure_contrast.py,$(sort $(wildcard benchmarks/measure_*.py)))
# Kept bytecode saves a tenth of the processor time that a server takes to start; the tests start dozens.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help
.PHONY: help setup demo fast test test-slow test-real-size test-page test-haproxy test-observability test-gpu gpu-wheels check security bench bench-fast docs clean test-clients

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

setup: ## create .venv with everything (client, converter, Triton server, tests)
	@sh scripts/setup.sh

demo: setup ## convert a tiny checkpoint, start a Triton server, ask about held-out clips
	@.venv/bin/vl2 demo

test: setup ## run all tests, including those with a real server
	@$(PYTEST) $(SHARED)

fast: setup ## run the tests that need neither a server nor torch
	@$(PYTEST) $(SHARED) --without-torch -m "not slow and not installs" tests/unit tests/contract

test-slow: setup ## run the tests that take minutes or separate environments: other Pillow versions, decord, training recipes
	@$(PYTEST) -m slow

test-real-size: setup ## test conversion at the published sizes with random weights (minutes, 8 GB of memory)
	@$(PYTEST) tests/real_size -s

test-page: setup ## test the web page in a browser; installs Debian's Chromium and playwright
	@sh scripts/test_page.sh

test-clients: setup ## test langchain-openai, LiteLLM, AIPerf and lmms-eval through the gateway; installs them in build/clients
	@sh scripts/test_clients.sh

test-haproxy: setup ## test three servers behind HAProxy: one killed, one drained, one added; installs Debian's HAProxy
	@sh scripts/test_haproxy.sh

test-observability: setup ## test rules and dashboard with Debian's Prometheus on a real server
	@sh scripts/test_observability.sh

test-gpu: ## run GPU tests; PART=correct, speed, tensorrt, tensorrt_rtx or nvdec, at most 8 minutes each
	@sh scripts/test_gpu.sh $(PART)

gpu-wheels: setup ## download build/gpu/wheels for a GPU machine without network, with Python GPU_PYTHON
	@.venv/bin/python -m pip download --quiet --only-binary=:all: --no-deps --python-version $(or $(GPU_PYTHON),3.12) \
		-c constraints.txt --dest build/gpu/wheels -r scripts/gpu_requirements.txt

check: setup ## check format, lint and types, and run all tests
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@$(PYTEST) $(SHARED)

security: setup ## run all hostile cases, including slow ones; writes the tables of docs/security.md
	@$(PYTEST) tests/security -m "slow or not slow" --write-cases

# Without measure_contrast.py, which needs a running server.
bench: setup ## run every measuring script completely, on an idle machine; writes docs/performance.md
	@for script in $(MEASURES); do .venv/bin/python $$script || exit 1; done
	@.venv/bin/python -m videollama_benchmarks.performance_page

bench-fast: setup ## run a small part of every measuring script (three minutes); writes build/bench-fast/
	@for script in $(MEASURES); do .venv/bin/python $$script --fast || exit 1; done

docs: setup ## build the documentation as a site, build/site/index.html
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build && echo build/site/index.html

clean: ## remove converted checkpoints (build/*/) and caches
	@rm -rf build/*/ .pytest_cache .ruff_cache .mypy_cache
