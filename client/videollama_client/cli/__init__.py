"""The command `vl2`: the library, spoken. May import the client; other parts of ours are imported when they are called."""

from videollama_client.cli.commands import main as main
from videollama_client.cli.commands import main_group as main_group
from videollama_client.cli.commands import run as run
