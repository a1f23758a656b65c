"""The web page: static files and example media. May import only Starlette."""
