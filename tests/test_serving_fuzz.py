import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_serving_app import Send, sender
from test_serving_classifier import make_model, picture

from serving.endpoint.classifier import Classifier


@pytest.fixture(scope="module")
def send(tmp_path_factory: pytest.TempPathFactory) -> Send:
    classifier = Classifier(make_model(tmp_path_factory.mktemp("model")))
    return sender(lambda: classifier, max_body_mb=0.1)


KINDS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "ICO", "TGA", "PCX", "SGI", "DDS", "JPEG2000")


@st.composite
def broken_pictures(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed and its end cut off: further into the decoders than noise gets."""
    file = bytearray(picture((10, 200, 30), side=16, kind=draw(st.sampled_from(KINDS))))
    for _ in range(draw(st.integers(0, 8))):
        file[draw(st.integers(0, len(file) - 1))] = draw(st.integers(0, 255))
    return bytes(file[: draw(st.integers(0, len(file)))]) if draw(st.booleans()) else bytes(file)


@settings(max_examples=150, deadline=None)
@given(
    body=st.one_of(st.binary(max_size=300), broken_pictures()),
    content_type=st.sampled_from(
        [
            "image/png",
            "application/octet-stream",
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "text/plain",
        ]
    ),
    wrapped=st.booleans(),
)
def test_no_bytes_make_the_server_fail(send, body, content_type, wrapped):
    request = {"files": {"image": body}} if wrapped else {"content": body, "headers": {"content-type": content_type}}
    response = send("POST", "/classify", **request)
    assert response.status_code < 500
    assert response.json().keys() in ({"predictions", "uncertain", "model"}, {"error", "detail"})


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(codec="latin-1", exclude_characters="\r\n\0"), max_size=60))
def test_no_content_type_makes_the_server_fail(send, text):
    for start in ("", "multipart/form-data; boundary=", "multipart/form-data; charset="):
        headers = {b"content-type": (start + text).encode("latin-1")}
        body = b"--" + text.encode("latin-1") + b'\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n'
        assert send("POST", "/classify", content=body, headers=headers).status_code < 500
