#!/bin/sh
# Tests the web page in Debian's Chromium with playwright. Installs playwright, and with apt Chromium if it is missing.
set -eu
cd "$(dirname "$0")/.."
command -v chromium > /dev/null || apt-get install --yes --quiet chromium
.venv/bin/python -m pip install --quiet --disable-pip-version-check "playwright>=1.49"
.venv/bin/python -m pytest -m slow tests/page
