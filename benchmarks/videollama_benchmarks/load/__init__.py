"""`vl2 bench`: load on a running server, and what it made of it. May import the client, the core's protocol and `plan`."""
