#!/bin/sh
# Create .venv with everything: client, converter, Triton server, tests. Safe to run again; an up-to-date .venv is kept.
set -eu
cd "$(dirname "$0")/.."

stop() { echo "setup: $1" >&2; exit 1; }

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] ||
    stop "this is $(uname -s) on $(uname -m), but the Triton server's wheel exists only for Linux on x86-64. The client installs anywhere: pip install ."

# numpy 1.26, which the server's Python backend needs, has wheels up to Python 3.12.
for candidate in "${PYTHON:-}" python3.12 python3.11 python3; do
    [ -n "$candidate" ] || continue
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in 3.11 | 3.12) python=$candidate && break ;; esac
done
[ -n "${python:-}" ] || stop "found ${version:-no Python}, but Python 3.11 or 3.12 is needed. Set PYTHON=/path/to/python3.12"
"$python" -c 'import venv, ensurepip' 2>/dev/null || stop "this Python lacks the module venv (Debian: apt install python$version-venv)"

# The stamp is a checksum of what the environment was created from.
stamp=.venv/.setup
want=$(cat pyproject.toml constraints.txt scripts/setup.sh | cksum)
if [ -x .venv/bin/vl2 ] && [ "$(cat $stamp 2>/dev/null)" = "$want" ]; then exit 0; fi

echo "setup: creating .venv with $python ($version); about 2.5 GB, a few minutes" >&2
[ -x .venv/bin/python ] || "$python" -m venv .venv
# The extra index has the CPU build of torch, which pip prefers over PyPI's CUDA build of several gigabytes.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --retries 2 \
    --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt "torch==2.13.0"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
echo "$want" > $stamp
echo "setup: done; .venv/bin/vl2 --help" >&2
