"""With Debian's Prometheus: scripts/test_observability.sh."""
