"""The web page: static files and the examples it offers. May import Starlette alone."""
