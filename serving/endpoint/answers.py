"""The bodies of the answers, as they are sent and as OpenAPI describes them."""

from typing import Annotated, Any, NotRequired

from pydantic import Field

# Pydantic describes this TypedDict; that of `typing` only from Python 3.12 on.
from typing_extensions import TypedDict

NOT_READY = "not_ready"
"""The field `error` of an endpoint that could not load its model. It never will: a deployment gives it up at once."""


class Prediction(TypedDict):
    """One class and its share of the network's belief; all classes together have 1."""

    label: str
    probability: float


class ModelId(TypedDict):
    """Where an answer comes from: the registered version, the run that trained it, the data it was trained on."""

    name: str
    version: str | None
    run_id: str
    data_version: str


class Problem(TypedDict):
    """Why there is no answer: the kind of problem in a word, and the rest in a line."""

    error: str
    detail: str


class Predictions(TypedDict):
    """The classes of one image of a batch, the likeliest first."""

    predictions: list[Prediction]
    uncertain: Annotated[
        bool, Field(description="Whether the model rather does not know: no class is likely enough. Not a refusal.")
    ]


class Answer(Predictions):
    """The classes of one image, the likeliest first."""

    model: ModelId


class BatchAnswer(TypedDict):
    """What came of each image of a batch, in the order in which they were sent."""

    results: list[Predictions | Problem]
    model: ModelId


class Example(TypedDict):
    """A test image."""

    label: str
    """its class, as its owner says"""
    image: str
    """a PNG, in base64"""


class Examples(TypedDict):
    """Test images to try the model with; none where their owner has not allowed it."""

    examples: list[Example]


class Explanation(TypedDict):
    """Where in an image the evidence for a class is."""

    label: str
    probability: float
    evidence: list[list[float]]
    """rows from the top, of what the network sees: by how much the log-odds of the class fall, in nats, when this part
    is covered; positive speaks for the class, negative against it"""
    crop: float
    """what the network sees: the square in the centre whose side is this share of the image's shorter side"""
    model: ModelId


class InferenceProblem(TypedDict):
    """Why the Open Inference Protocol has no answer."""

    error: str


class ServerInfo(TypedDict):
    """What answers, in the Open Inference Protocol."""

    name: str
    version: str
    extensions: list[str]


class TensorInfo(TypedDict):
    """An input or output; -1 in its shape stands for the number of images."""

    name: str
    datatype: str
    shape: list[int]


class ModelInfo(TypedDict):
    """The model, in the Open Inference Protocol; a request has one of its inputs."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]


class OutputTensor(TensorInfo):
    """An output; its values are `data`, or as many bytes behind the JSON as `parameters` says."""

    data: NotRequired[list[Any]]
    parameters: NotRequired[dict[str, int]]


class InferenceAnswer(TypedDict):
    """The outputs that a request of the Open Inference Protocol asked for."""

    model_name: str
    model_version: NotRequired[str]
    id: NotRequired[str]
    outputs: list[OutputTensor]
