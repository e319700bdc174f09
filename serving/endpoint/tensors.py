"""Images and answers as tensors of the Open Inference Protocol, in JSON or as the bytes behind it.

The protocol is https://github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md`; the bytes
are its extension `binary_tensor_data`, as Triton Inference Server defines it.
"""

import base64
import binascii
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from data.images.decode import Pixels
from serving.endpoint.answers import InferenceAnswer, ModelId, OutputTensor

JSON_LENGTH = "Inference-Header-Content-Length"
"""The header that gives the number of bytes of JSON before the bytes of tensors."""
OUTPUTS = {"probabilities": "FP32", "label": "BYTES", "uncertain": "BOOL"}
"""What can be asked for, and its datatype."""
MAX_VALUES = 200_000
"""Values in the JSON of a request: the pixels of one image of 256 x 256. In memory each takes up to 100 bytes."""

_LENGTH = struct.Struct("<I")


class InputTensor(BaseModel):
    """A tensor of a request; its values are `data`, or `binary_data_size` bytes behind the JSON."""

    model_config = ConfigDict(strict=True, defer_build=True)

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputWanted(BaseModel):
    """An output that a request asks for."""

    model_config = ConfigDict(strict=True, defer_build=True)

    name: str
    parameters: dict[str, Any] = {}


class InferenceRequest(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(strict=True, defer_build=True)

    id: str | None = None
    parameters: dict[str, Any] = {}
    inputs: list[InputTensor]
    outputs: list[OutputWanted] | None = None

    def wanted(self) -> dict[str, bool]:
        """Give the names of the outputs, and whether they are sent as bytes.

        Raises:
            HTTPException: 400, an output is unknown, or asked for in a form that is not made here.

        """
        is_binary = self.parameters.get("binary_data_output") is True
        if not self.outputs:
            return dict.fromkeys(OUTPUTS, is_binary)
        for output in self.outputs:
            if output.name not in OUTPUTS:
                raise HTTPException(400, f"an output is unknown: there are {', '.join(OUTPUTS)}")
            if "classification" in output.parameters:
                raise HTTPException(400, "`classification` is not supported: ask for the outputs without it")
        return {output.name: output.parameters.get("binary_data", is_binary) is True for output in self.outputs}


def read_request(body: bytes, json_length: str | None) -> tuple[InferenceRequest, memoryview]:
    """Read the JSON of a request; gives it and the bytes behind it.

    Raises:
        HTTPException: 400, it is no request; 413, it has too many values.

    """
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdecimal() and int(json_length[:19]) <= length):
            raise HTTPException(400, f"{JSON_LENGTH} must be the number of bytes of JSON at the start of the body")
        length = int(json_length[:19])
    text = body[:length]
    if sum(map(text.count, (b",", b"[", b"{"))) > MAX_VALUES:
        detail = f"the JSON has more than {MAX_VALUES:,} values: send tensors as bytes, with `binary_data_size`"
        raise HTTPException(413, detail)
    try:
        return InferenceRequest.model_validate_json(text), memoryview(body)[length:]
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False, include_input=False)
        where = ".".join(map(str, first["loc"][:4])) or "body"
        raise HTTPException(400, f"not an inference request: {where}: {first['msg']}"[:200]) from None


def read_images(asked: InferenceRequest, tail: memoryview, crop: int, max_images: int) -> Sequence[bytes | Pixels]:
    """Take the images out of a request: files of images, or pixels [crop, crop, 3].

    Raises:
        HTTPException: 400, the input is none that there is, or its values do not fit its shape; 422, too many images.

    """
    if len(asked.inputs) != 1:
        raise HTTPException(400, "send one input, `image` or `pixels`")
    (tensor,) = asked.inputs
    values = _values(tensor, tail)
    num_images = tensor.shape[0] if tensor.shape else 0
    if num_images > max_images:
        raise HTTPException(422, f"the input has {num_images} images: {max_images} are allowed here")
    match tensor.name, tensor.datatype, tensor.shape:
        case "image", "BYTES", [_] | [_, 1] if num_images:
            return _split(values, num_images) if isinstance(values, memoryview) else _from_base64(values, num_images)
        case "pixels", "UINT8", [_, height, width, 3] if num_images and height == width == crop:
            return _to_pixels(values, tensor.shape)
    expected = f"`image`, BYTES of shape [N] or [N, 1], or `pixels`, UINT8 of shape [N, {crop}, {crop}, 3]"
    raise HTTPException(400, f"the input must be {expected}, with N at least 1")


def respond(asked: InferenceRequest, model: ModelId, outputs: Mapping[str, npt.NDArray[Any]]) -> Response:
    """Make the answer that a request asks for; `outputs` are all that there are, labels as text."""
    described: list[OutputTensor] = []
    pieces = []
    for name, is_binary in asked.wanted().items():
        array = outputs[name]
        output: OutputTensor = {"name": name, "shape": list(array.shape), "datatype": OUTPUTS[name]}
        if is_binary:
            pieces.append(_to_bytes(array))
            output["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            output["data"] = array.ravel().tolist()
        described.append(output)
    answer: InferenceAnswer = {"model_name": model["name"], "outputs": described}
    if model["version"]:
        answer["model_version"] = model["version"]
    if asked.id:
        answer["id"] = asked.id
    if not pieces:
        return JSONResponse(answer)
    text = json.dumps(answer).encode()
    headers = {JSON_LENGTH: str(len(text))}
    return Response(b"".join([text, *pieces]), media_type="application/octet-stream", headers=headers)


def _values(tensor: InputTensor, tail: memoryview) -> list[Any] | memoryview:
    size = tensor.parameters.get("binary_data_size")
    if size is None and tensor.data is not None and not tail:
        return tensor.data
    if type(size) is int and size == len(tail) and tensor.data is None:
        return tail
    raise HTTPException(400, "send the values as `data`, or as the `binary_data_size` bytes behind the JSON")


def _split(values: memoryview, num_images: int) -> list[bytes]:
    """Split elements of BYTES, each behind its length in 4 bytes."""
    images, start = [], 0
    for _ in range(num_images):
        if start + _LENGTH.size > len(values):
            break
        (length,) = _LENGTH.unpack_from(values, start)
        start += _LENGTH.size
        images.append(bytes(values[start : start + length]))
        start += length
    if len(images) != num_images or start != len(values):
        raise HTTPException(400, f"the bytes are not those of {num_images} elements, each behind its length in 4 bytes")
    return images


def _from_base64(values: list[Any], num_images: int) -> list[bytes]:
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if len(flat) == num_images and all(isinstance(one, str) for one in flat):
        try:
            return [base64.b64decode(one, validate=True) for one in flat]
        except (binascii.Error, ValueError):
            pass
    raise HTTPException(400, f"`data` must be the {num_images} images of `shape`, in base64")


def _to_pixels(values: list[Any] | memoryview, shape: list[int]) -> Sequence[Pixels]:
    try:
        array = np.frombuffer(values, np.uint8) if isinstance(values, memoryview) else np.array(values)
    except ValueError:  # rows of different lengths
        array = np.zeros(0)
    if array.size == np.prod(shape) and array.dtype.kind in "iu" and array.min() >= 0 and array.max() <= 255:
        return list(array.astype(np.uint8, copy=False).reshape(shape))
    raise HTTPException(400, f"the pixels must be whole numbers from 0 to 255, as many as the shape {shape} has")


def _to_bytes(array: npt.NDArray[Any]) -> bytes:
    if array.dtype.kind != "U":
        return array.tobytes()
    return b"".join(_LENGTH.pack(len(text.encode())) + text.encode() for text in array.ravel().tolist())
