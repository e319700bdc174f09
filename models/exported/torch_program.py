"""Inference of the `gpu` target: runs a `torch.export` program in bf16 with torch alone."""

import json
import zipfile
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from core.errors import UserError
from core.files import file_sha256
from data.images.decode import Pixels
from models.exported.manifest import NORMALIZATION, PROGRAM_FILE
from models.exported.predictor import read_model_manifest
from models.exported.session import Probabilities

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""A batch is padded to the next of these sizes, each of which has a CUDA graph. Larger batches are split."""
NUM_WARM_UPS = 3
"""Runs before a graph is captured: libraries choose kernels and allocate memory, which a capture does not allow."""


class ProgramPredictor:
    """Exported program and its manifest, with the calling convention of `OnnxPredictor`. Runs on a CPU too, slowly.

    Thread-safe. Threads take turns, because they share the buffers of the graphs.
    """

    def __init__(
        self, folder: Path, *, num_threads: int = 0, device: str | None = None, cuda_graphs: bool = True
    ) -> None:
        """Load `model.pt2` and `manifest.json` from `folder`.

        Args:
            folder: folder of both files.
            num_threads: threads on a CPU; 0: one thread per core.
            device: cuda or cpu; None: a GPU if there is one.
            cuda_graphs: capture a graph for each batch size now, so that no request waits for it. Ignored on a CPU.

        Raises:
            UserError: a file is missing, or the program does not belong to the manifest.

        """
        self.manifest = read_model_manifest(folder)
        program = folder / PROGRAM_FILE
        if self.manifest.program_sha256 is None or not program.is_file():
            raise UserError(f"{program} is missing: this model was exported without it; train and register it again")
        if file_sha256(program) != self.manifest.program_sha256:
            raise UserError(
                f"{program} was altered after it was exported: package the model again with `convoy package`"
            )
        if num_threads:
            torch.set_num_threads(num_threads)
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._network, said = load_program(program, self._device)
        self.manifest.require_normalization(PROGRAM_FILE, said)
        self._turn = Lock()
        graphs = cuda_graphs and self._device.type == "cuda"
        crop = self.manifest.preprocessing.crop
        self._graphs = {size: _Graph(self._network, size, crop, self._device) for size in BATCH_SIZES} if graphs else {}

    def __call__(self, images: Pixels) -> Probabilities:
        """Classify images, uint8 [N, crop, crop, 3], into probabilities, float32 [N, num_classes]."""
        parts = [images[start : start + BATCH_SIZES[-1]] for start in range(0, len(images), BATCH_SIZES[-1])]
        with self._turn, torch.inference_mode():
            return np.concatenate([self._predict(part) for part in parts])

    def _predict(self, images: Pixels) -> Probabilities:
        size = next(size for size in BATCH_SIZES if size >= len(images))
        if self._graphs:
            return self._graphs[size](images)
        filled = np.zeros((size, *images.shape[1:]), dtype=np.uint8)
        filled[: len(images)] = images
        probabilities: Tensor = self._network(torch.from_numpy(filled).to(self._device))
        return probabilities[: len(images)].cpu().numpy()


class _Graph:
    """CUDA graph of one batch size. Pixels and probabilities are copied through pinned memory."""

    def __init__(self, network: nn.Module, size: int, crop: int, device: torch.device) -> None:
        self._sent = torch.zeros(size, crop, crop, 3, dtype=torch.uint8, pin_memory=True)
        self._images = self._sent.to(device)
        self._graph = torch.cuda.CUDAGraph()
        with torch.inference_mode():
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(NUM_WARM_UPS):
                    network(self._images)
            torch.cuda.current_stream(device).wait_stream(stream)
            with torch.cuda.graph(self._graph):
                self._probabilities = network(self._images)
        self._received = torch.empty(self._probabilities.shape, pin_memory=True)

    def __call__(self, images: Pixels) -> Probabilities:
        count = len(images)
        self._sent[:count].copy_(torch.from_numpy(images))
        self._images[:count].copy_(self._sent[:count], non_blocking=True)
        self._graph.replay()
        self._received.copy_(self._probabilities, non_blocking=True)
        torch.cuda.current_stream(self._images.device).synchronize()
        return self._received[:count].numpy().copy()


def load_program(path: Path, device: torch.device) -> tuple[nn.Module, str | None]:
    """Load a program for `device`, and return its network and its normalization. Files with pickled data are refused.

    `torch.export.load` unpickles weights that the file marks as pickled. It also unpickles example inputs, first with
    `weights_only`, and without if that fails. Our programs have neither.

    Raises:
        UserError: the file is no program, or holds pickled data.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = [name for name in archive.namelist() if _is_pickled(archive, name)]
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile):
        raise UserError(f"{path} is no exported program: package the model again with `convoy package`") from None
    if pickled:
        raise UserError(f"{path} holds pickled data ({pickled[0]}), which can run any code: export the model again")
    extra_files = {NORMALIZATION: ""}
    program = torch.export.load(path, extra_files=extra_files)
    network: nn.Module = move_to_device_pass(program, device).module()
    return network.to(memory_format=torch.channels_last), extra_files[NORMALIZATION] or None


def _is_pickled(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether a member holds example inputs, or is a list of weights or constants in which any entry is pickled."""
    if "/sample_inputs/" in name:
        return archive.getinfo(name).file_size > 0
    if not name.endswith("_config.json"):
        return False
    return any(entry["use_pickle"] for entry in json.loads(archive.read(name))["config"].values())
