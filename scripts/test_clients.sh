#!/bin/sh
# Tests the published langchain-openai, LiteLLM, AIPerf and lmms-eval with a real server. Each list of packages is installed in a
# separate environment in build/clients; that of lmms-eval takes 2 GB.
set -eu
cd "$(dirname "$0")/.."
install() { # NAME PACKAGES...
    python=build/clients/$1/bin/python
    shift
    [ -x "$python" ] || .venv/bin/python -m venv "${python%/bin/python}"
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}
install clients -r scripts/clients_requirements.txt
install lmms_eval --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" # the CPU build, as in setup.sh
install lmms_eval -r scripts/lmms_eval_requirements.txt "torch==2.13.0"
.venv/bin/python -m pytest -m slow tests/clients
