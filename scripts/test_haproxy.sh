#!/bin/sh
# Tests three real servers behind Debian's HAProxy. Installs it with apt if it is missing.
set -eu
cd "$(dirname "$0")/.."
command -v haproxy > /dev/null || [ -x /usr/sbin/haproxy ] || apt-get install --yes --quiet haproxy
.venv/bin/python -m pytest -s -m slow tests/service/test_haproxy.py
