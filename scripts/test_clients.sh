#!/bin/sh
# langchain-openai, LiteLLM, AIPerf and lmms-eval, as they are published, against a real server. Each list of packages gets an
# environment of its own in build/clients; that of lmms-eval takes 2 GB.
set -eu
cd "$(dirname "$0")/.."
install() { # NAME PACKAGES...
    python=build/clients/$1/bin/python
    shift
    [ -x "$python" ] || .venv/bin/python -m venv "${python%/bin/python}"
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}
install clients -r scripts/clients_requirements.txt
install lmms_eval --extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0" # as setup.sh: the build for CPUs
install lmms_eval -r scripts/lmms_eval_requirements.txt "torch==2.13.0"
.venv/bin/python -m pytest -m slow tests/clients
