"""Reads the images of a request, within limits of size, time and memory."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Self

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

READ_SECONDS = 20
"""A slower body is refused, so that slow connections do not pile up."""
FIELD = "image"
"""Part of a multipart form with the file."""
IMAGES = (FIELD, "images")
"""Parts of a form with files. BentoML's clients name them after the parameter of the method."""
FULL_BODIES = 4
"""Number of bodies of the maximum size that fit into memory at the same time."""
ALWAYS_FITS = 1_000_000
"""In bytes. Smaller bodies are never refused for lack of room, so that a few slow bodies cannot block all others."""
RETRY = {"Retry-After": "1"}
"""Headers of a 503."""


class Inbox:
    """Bodies in memory, with a limit for each body and for all bodies together."""

    def __init__(self, max_body: int) -> None:
        """Accept bodies of at most `max_body` bytes."""
        self.max_body = max_body
        self.capacity = FULL_BODIES * max_body
        self.held = 0

    def hold(self) -> "Hold":
        """Return a context manager for one body, which counts until the end of the block."""
        return Hold(self)


class Hold:
    """Room of one body in an `Inbox`."""

    __slots__ = ("_inbox", "_received", "max_body")

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self.max_body = inbox.max_body
        self._received = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._inbox.held -= self._received

    def announce(self, length: str) -> None:
        """Refuse a body by its Content-Length, before any of it is read."""
        # int() refuses very long numbers, so only the first digits are parsed.
        if length.isdecimal() and int(length[:19]) > self.max_body:
            raise self._too_large()

    def add(self, num_bytes: int) -> None:
        """Count received bytes, because the announced length may be wrong or missing.

        Raises:
            HTTPException: 413, the body is too large; 503, there is no room for the body.

        """
        self._received += num_bytes
        self._inbox.held += num_bytes
        if self._received > self.max_body:
            raise self._too_large()
        if self._inbox.held > self._inbox.capacity and self._received > ALWAYS_FITS:
            raise HTTPException(503, "too many large images at once: try again in a moment", RETRY)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self.max_body:,} bytes")


class Upload(NamedTuple):
    """Content of a body."""

    images: list[bytes]
    parameters: Mapping[str, str] = {}
    """fields of a form that are no files"""


async def read_image(request: Request, hold: Hold) -> Upload:
    """Read one image: the body of type image/* or application/octet-stream, or the field `image` of a form.

    Raises:
        HTTPException: 400, 408, 413, 415, 422 or 503, with the reason.

    """
    kind = content_type(request)
    if kind == "multipart/form-data":
        upload = await _read_form(request, hold, max_images=1)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        upload = Upload([await read_body(request, hold)])
    else:
        raise HTTPException(
            415,
            "send the image as the body, with its type (image/*) or application/octet-stream, or as the field "
            f"`{FIELD}` of multipart/form-data",
        )
    if not upload.images[0]:
        raise HTTPException(400, "the image is empty")
    return upload


async def read_images(request: Request, hold: Hold, max_images: int) -> Upload:
    """Read the images of a form, in order. An image may be empty.

    Raises:
        HTTPException: 400, 408, 413, 415, 422 or 503, with the reason.

    """
    if content_type(request) != "multipart/form-data":
        raise HTTPException(415, f"send the images as multipart/form-data, each in a field `{FIELD}`")
    return await _read_form(request, hold, max_images)


def content_type(request: Request) -> str:
    """Return the content type without parameters, or an empty text."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, hold: Hold) -> bytes:
    """Read a raw body.

    Raises:
        HTTPException: 400, 408, 413 or 503, with the reason.

    """
    async with _in_time():
        pieces = [piece async for piece in _pieces(request, hold)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _read_form(request: Request, hold: Hold, max_images: int) -> Upload:
    parser = MultiPartParser(request.headers, _pieces(request, hold), max_files=max_images, max_fields=16)
    # Never spool to disk: the body is limited, and an endpoint's file system may be read-only.
    parser.spool_max_size = hold.max_body
    try:
        async with _in_time():
            form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise HTTPException(422, f"the form has too many files: {max_images} are allowed here") from None
        raise HTTPException(400, f"malformed form: {error.message}") from None
    try:
        files = [file for field in IMAGES for file in form.getlist(field)]
        if not files or not all(isinstance(file, UploadFile) for file in files):
            raise HTTPException(422, f"the form has no file in its field `{FIELD}`")
        parameters = {name: value for name, value in form.items() if isinstance(value, str)}
        return Upload([await file.read() for file in files if isinstance(file, UploadFile)], parameters)
    finally:
        await form.close()


async def _pieces(request: Request, hold: Hold) -> AsyncGenerator[bytes]:
    """Yield and count the body as it arrives."""
    hold.announce(request.headers.get("content-length", ""))
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more = message.get("more_body", False)
        if piece := message.get("body", b""):
            hold.add(len(piece))
            yield piece


@asynccontextmanager
async def _in_time() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(READ_SECONDS):
            yield
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {READ_SECONDS} seconds") from None
    except ClientDisconnect:
        raise HTTPException(400, "the connection was closed before the body was complete") from None
