#!/bin/sh
# Tests Prometheus with a real server and gateway, and the rules with promtool. Debian's package is unpacked into build/prometheus if
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
