"""The machine's resources: what a server needs of them, and cleaning up what it would leave behind."""
