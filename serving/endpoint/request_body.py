"""From a request to the bytes of its images: within limits of size, time and memory."""

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
"""A body that takes longer is refused: connections that trickle must not pile up."""
FIELD = "image"
"""The part of a multipart form that holds the file."""
IMAGES = (FIELD, "images")
"""Parts of a form that hold files; BentoML's clients name them after the parameter of the method."""
FULL_BODIES = 4
"""Bodies of the largest size allowed that are held at the same time."""
ALWAYS_FITS = 1_000_000
"""Bytes: a body that is not larger is not refused for want of room, lest a few that trickle keep all others out."""
RETRY = {"Retry-After": "1"}
"""Headers of a 503: seconds after which it may be better."""


class Inbox:
    """The bodies that an endpoint holds at one moment: each is limited, and all of them together are."""

    def __init__(self, max_body: int) -> None:
        """Take bodies of at most `max_body` bytes."""
        self.max_body = max_body
        self.capacity = FULL_BODIES * max_body
        self.held = 0

    def hold(self) -> "Hold":
        """Make room for one body, to be used as a context manager; after it the body counts no longer."""
        return Hold(self)


class Hold:
    """The room that one body takes in an `Inbox`."""

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
        # What is too long for the limit is too long for int() as well, sooner or later.
        if length.isdecimal() and int(length[:19]) > self.max_body:
            raise self._too_large()

    def add(self, num_bytes: int) -> None:
        """Count bytes that came: the announced length may be a lie, or missing.

        Raises:
            HTTPException: 413, the body is too large; 503, too much is held already.

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
    """What a body holds."""

    images: list[bytes]
    parameters: Mapping[str, str] = {}
    """fields of a form beside its files"""


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
    """Read the images of a form, in their order; any of them may be empty.

    Raises:
        HTTPException: 400, 408, 413, 415, 422 or 503, with the reason.

    """
    if content_type(request) != "multipart/form-data":
        raise HTTPException(415, f"send the images as multipart/form-data, each in a field `{FIELD}`")
    return await _read_form(request, hold, max_images)


def content_type(request: Request) -> str:
    """Give the type of a body, without its parameters; empty where none is named."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, hold: Hold) -> bytes:
    """Read a body as it is.

    Raises:
        HTTPException: 400, 408, 413 or 503, with the reason.

    """
    async with _in_time():
        pieces = [piece async for piece in _pieces(request, hold)]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _read_form(request: Request, hold: Hold, max_images: int) -> Upload:
    parser = MultiPartParser(request.headers, _pieces(request, hold), max_files=max_images, max_fields=16)
    # Never to disk: the body is bounded, and the file system of an endpoint may be read-only.
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
    """Give the body as it arrives, and count it."""
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
