import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name

import numpy as np

from core.errors import UserError
from data.images.budget import DEFAULT_SECONDS
from data.images.decode import Pixels, TooLargeError, decode, opened, to_pixels
from data.images.footprint import footprint
from data.images.work_blocks import icon_pixels
from models.exported.manifest import ModelManifest
from models.exported.predictor import is_uncertain
from models.exported.session import Probabilities
from serving.endpoint.answers import Answer, ModelId, Prediction
from serving.targets import ONNXRUNTIME, Runtime

MAX_ICON_PIXELS = 1_000_000
SMALL_SECONDS = 0.05
"""Of one core, for reading a small image: a JPEG of 2 million pixels, a PNG of 0.8 million."""
SMALL_SHARE = 4
"""Small images share a quarter as much memory as the large ones, and do not wait for theirs."""


class Room:
    """Memory that threads share: each takes what it is going to need, and waits until there is as much."""

    def __init__(self, capacity: int) -> None:
        """Share `capacity` bytes."""
        self._capacity = capacity
        self._held = 0
        self._freed = threading.Condition()
        self._turn = threading.Lock()

    @contextmanager
    def take(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes during the block.

        Raises:
            TooLargeError: there will never be as much.

        """
        if num_bytes > self._capacity:
            needed, all_there_is = (round(number / 1e6) for number in (num_bytes, self._capacity))
            raise TooLargeError(
                f"reading it may take {needed:,} MB of memory, more than the {all_there_is:,} MB for it"
            )
        # Who waits keeps its turn: many small images do not keep a large one waiting for ever.
        with self._turn, self._freed:
            self._freed.wait_for(lambda: self._held + num_bytes <= self._capacity)
            self._held += num_bytes
        try:
            yield
        finally:
            with self._freed:
                self._held -= num_bytes
                self._freed.notify()


class Classifier:
    """From the bytes of an image to an answer: decoding, prediction, class names. Safe to call from several threads."""

    def __init__(
        self,
        folder: Path,
        runtime: Runtime = ONNXRUNTIME,
        *,
        num_threads: int = 0,
        decoding_mb: int = 1024,
        decoding_seconds: float = DEFAULT_SECONDS,
    ) -> None:
        """Load the model in `folder` by `runtime` and let it classify its golden image, which also warms it up.

        0 threads means that a prediction uses all cores. Images that are read at the same time share `decoding_mb`.
        An image that may take one core longer than `decoding_seconds` to read is refused.

        Raises:
            UserError: a file is missing or was altered, or the model answers its golden image otherwise than measured.

        """
        self.predict = resolve_name(runtime.predictor)(folder, num_threads=num_threads)
        self.observe: Callable[[Pixels, Probabilities], None] | None = None
        """is given the images that clients have sent, and the answers"""
        self._runtime = runtime
        self._room = Room(decoding_mb * 1_000_000)
        self._small_room = Room(decoding_mb * 1_000_000 // SMALL_SHARE)
        self._decoding_seconds = decoding_seconds
        self.manifest: ModelManifest = self.predict.manifest
        self.model_id: ModelId = {
            "name": self.manifest.name,
            "version": self.manifest.version,
            "run_id": self.manifest.run_id,
            "data_version": self.manifest.data_version,
        }
        self._check_golden()

    @property
    def platform(self) -> str:
        """What computes, and the format of the model, as the Open Inference Protocol names them."""
        return "onnxruntime_onnx" if self._runtime.model_file.endswith(".onnx") else "pytorch_pt2"

    def predict_sent(self, images: Pixels) -> Probabilities:
        """Classify images that clients have sent, [N, crop, crop, 3], into probabilities [N, C]."""
        probabilities = self.predict(images)
        if self.observe:
            self.observe(images, probabilities)
        return np.asarray(probabilities)

    def decode(self, image: bytes) -> Pixels:
        """Turn the bytes of an image file into what the model takes, [crop, crop, 3].

        Raises:
            TooLargeError: it has too many pixels, or reading it would take too much memory or too long.
            DecodeError: these bytes are no usable image.

        """
        return self._decode(image, self._decoding_seconds, self._room)

    def decode_small(self, image: bytes) -> Pixels | None:
        """Decode an image that takes little time and memory; gives None for all others, which `decode` may take.

        Raises:
            DecodeError: these bytes are no usable image.

        """
        try:
            return self._decode(image, min(SMALL_SECONDS, self._decoding_seconds), self._small_room)
        except TooLargeError:
            return None

    def classify(self, image: bytes, top_k: int) -> Answer:
        """Classify the bytes of an image file; the `top_k` likeliest classes, or all where there are fewer.

        Raises:
            DecodeError: these bytes are no usable image.

        """
        (probabilities,) = self.predict(self.decode(image)[None])
        return self.answer(probabilities, top_k)

    def answer(self, probabilities: Probabilities, top_k: int) -> Answer:
        """Put the probabilities of one image [num_classes] into an answer."""
        likeliest = np.argsort(-probabilities, kind="stable")[:top_k]
        predictions: list[Prediction] = [
            {"label": self.manifest.classes[index], "probability": float(probabilities[index])} for index in likeliest
        ]
        uncertain = is_uncertain(probabilities, self.manifest.certainty)
        return {"predictions": predictions, "uncertain": uncertain, "model": self.model_id}

    def _decode(self, image: bytes, max_seconds: float, room: Room) -> Pixels:
        spec = self.manifest.preprocessing
        if (pixels := icon_pixels(image)) > MAX_ICON_PIXELS:
            raise TooLargeError(f"an icon of {pixels:,} pixels, more than {MAX_ICON_PIXELS:,} allowed")
        opening = opened(image, spec.max_pixels, max_seconds)
        with opening as picture, room.take(footprint(picture, spec)):
            return to_pixels(picture, spec)

    def _check_golden(self) -> None:
        measured = np.array(self.manifest.golden_answer(self._runtime.model_file), dtype=np.float32)
        answered = self._predict_golden()
        if answered.shape != measured.shape:
            raise UserError(
                f"the model gives {answered.size} probabilities for its golden image where {measured.size} were "
                "measured: export it again"
            )
        difference = float(np.abs(answered - measured).max())
        # Negated, so that NaN is a difference too. Where there are many classes or little belief all probabilities are
        # small and differ little: then only the order tells two models apart.
        if not difference <= self._runtime.tolerance or answered.argmax() != measured.argmax():
            raise UserError(
                f"the model answers its golden image otherwise than measured (by {difference:.2g}, allowed "
                f"{self._runtime.tolerance:g}): export it again, or serve it with the packages it was measured with"
            )

    def _predict_golden(self) -> Probabilities:
        preprocessing = self.manifest.preprocessing
        # The golden image is stored after the crop: resizing to the crop leaves it as it is.
        stored = preprocessing.model_copy(update={"size": preprocessing.crop})
        (probabilities,) = self.predict(decode(base64.b64decode(self.manifest.golden.image), stored)[None])
        return np.asarray(probabilities)
