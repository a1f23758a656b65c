"""The load generator `vl2 bench` and its reports. May import the client, the core's protocol and `plan`."""
