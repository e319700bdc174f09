from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from serving.endpoint.middleware import Route

FOLDER = Path(__file__).parent / "page"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/tiles.js": ("tiles.js", "text/javascript"),
}
"""Files of the page, by path."""
HEADERS = {
    # No external and no inline content. Pictures are chosen by the visitor, or packaged examples.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    # A new version of the endpoint may have a new page.
    "Cache-Control": "no-cache",
}


def page_routes() -> Mapping[str, Route]:
    """Return the routes of the page. They need no token, because the page itself asks for one."""
    return {path: Route("GET", _Static(*file), is_open=True) for path, file in FILES.items()}


class _Static:
    """File that is read once."""

    def __init__(self, name: str, media_type: str) -> None:
        self._content = (FOLDER / name).read_bytes()
        self._media_type = media_type

    async def __call__(self, _request: Request) -> Response:
        return Response(self._content, media_type=self._media_type, headers=HEADERS)
