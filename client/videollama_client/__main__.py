from videollama_client.cli import main

main()
