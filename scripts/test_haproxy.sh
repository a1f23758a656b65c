#!/bin/sh
# Three real servers behind Debian's HAProxy. Installs it by apt, where it is missing.
set -eu
cd "$(dirname "$0")/.."
command -v haproxy > /dev/null || [ -x /usr/sbin/haproxy ] || apt-get install --yes --quiet haproxy
.venv/bin/python -m pytest -s -m slow tests/service/test_haproxy.py
