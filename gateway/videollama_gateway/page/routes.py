"""Routes of the web page: three static files, and example media."""

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_SUFFIXES = (".mp4", ".webm", ".mov", ".gif", ".png", ".jpg", ".jpeg", ".webp", ".wav", ".flac", ".mp3", ".ogg")
MAX_EXAMPLES = 6
# Everything is loaded from the gateway itself; media that a visitor selects are blobs.
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def page_routes(examples: Path | None) -> list[BaseRoute]:
    """Build the routes.

    Args:
        examples: folder whose first media files the page offers; symbolic links are skipped.
    """
    files = {path.name: path for path in _media_in(examples)} if examples else {}

    def static(name: str) -> Any:
        async def answer(request: Request) -> Response:
            return FileResponse(Path(__file__).parent / name, headers=_HEADERS)

        return answer

    async def names(request: Request) -> Response:
        return JSONResponse(list(files))

    async def example(request: Request) -> Response:
        path = files.get(request.path_params["name"])
        return FileResponse(path, headers=_HEADERS) if path else Response(status_code=404)

    return [
        *(Route(route, static(name)) for route, name in _FILES.items()),
        Route("/examples", names),
        Route("/examples/{name}", example),
    ]


def _media_in(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in _SUFFIXES and not path.is_symlink()]
    return files[:MAX_EXAMPLES]
