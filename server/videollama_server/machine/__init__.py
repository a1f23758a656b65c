"""What the machine gives a server, and what a server would leave on it."""
