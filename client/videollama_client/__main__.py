"""`python -m videollama_client` is `vl2`."""

from videollama_client.cli import main

main()
