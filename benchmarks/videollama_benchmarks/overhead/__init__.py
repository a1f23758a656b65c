"""Measures the service's overhead outside its engines, with a server whose language model takes no time.

May import the client, the core, the server and `load`.
"""
