#!/bin/sh
# Prometheus reads a real server and gateway, and promtool the rules. Debian's package is unpacked into build/prometheus, where
# it is missing; nothing is installed.
set -eu
cd "$(dirname "$0")/.."
if [ ! -x build/prometheus/usr/bin/promtool ]; then
    mkdir -p build/prometheus
    (cd build/prometheus && apt-get download --quiet prometheus)
    dpkg-deb --fsys-tarfile build/prometheus/prometheus_*.deb | tar -x -C build/prometheus ./usr/bin
    rm build/prometheus/prometheus_*.deb
fi
.venv/bin/python -m pytest -m slow tests/prometheus
