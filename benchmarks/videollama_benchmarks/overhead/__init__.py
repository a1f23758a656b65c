"""What the service costs beside its engines: a real server whose language model costs nothing, and who asks it.

May import the client, the core, the server, and `load` for what it knows of this machine.
"""
