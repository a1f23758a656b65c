#!/bin/sh
# Install this source tree into a virtual environment: install.sh SOURCE VENV [EXTRA]
# EXTRA: empty (the client), serve, or any other extras of pyproject.toml. Versions are those of constraints.txt.
set -eu
source=$1 venv=$2 extra=${3:-}
python=${PYTHON:-python3}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
target=$source
[ -z "$extra" ] || target="${source}[$extra]"
"$venv/bin/python" -m pip install --no-cache-dir --quiet --disable-pip-version-check \
    -c "$source/constraints.txt" "$target"
"$venv/bin/vl2" --version
