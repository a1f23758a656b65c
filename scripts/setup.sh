#!/bin/sh
# Make .venv with everything: client, converter, Triton server, tests. Safe to run again; a finished one is left alone.
set -eu
cd "$(dirname "$0")/.."

stop() { echo "setup: $1" >&2; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    stop "found $(uname -s) on $(uname -m); the Triton server's wheel exists for Linux on x86-64 only. The client alone installs anywhere: pip install ."

# numpy 1.26, which the server's Python backend needs, has wheels up to Python 3.12.
for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
    [ -n "$candidate" ] || continue
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in 3.11 | 3.12) python=$candidate && break ;; esac
done
[ -n "${python:-}" ] || stop "found ${version:-no Python}; Python 3.11 or 3.12 is needed. Name it with PYTHON=/path/to/python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || stop "this Python lacks the module venv (Debian: apt install python$version-venv)"

# The stamp holds what the environment was made from.
stamp=.venv/.setup
want=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
if [ -x .venv/bin/vl2 ] && [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then exit 0; fi

echo "setup: making .venv with $python ($version); about 2 GB, a few minutes" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
# The extra index holds the CPU build of torch, which wins over PyPI's build for CUDA (several gigabytes).
.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 \
    --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt "torch==2.13.0"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
echo "$want" > $stamp
echo "setup: done; .venv/bin/vl2 --help" >&2
