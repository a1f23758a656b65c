"""The command `vl2`. May import the client; the project's other packages are imported when their command is called."""

from videollama_client.cli.commands import main as main
from videollama_client.cli.commands import main_group as main_group
from videollama_client.cli.commands import run as run
