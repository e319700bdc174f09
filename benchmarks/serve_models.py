"""Untrained networks for serving, exported like the pipeline's. Training would not change the times."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.feed import prepare_photos
from benchmarks.made_photos import photo_folder
from core.files import file_sha256
from data.augmentation.augment import Augmentation
from data.config import AugmentationConfig
from data.images.decode import Pixels, Preprocessing
from data.manifest import ColorStatistics
from models.config import ModelConfig, TrainingConfig
from models.exported.export import ServedNetwork, TorchPredictor, export_onnx, export_program, make_golden
from models.exported.manifest import INT8_FILE, MODEL_FILE, Int8, ModelManifest
from models.exported.predictor import MANIFEST_FILE
from models.exported.quantize import Calibrated, quantize
from models.exported.session import open_session, run_session
from models.networks.registry import build_network
from models.training.classifier import ImageClassifier
from models.training.recipes import resolve_recipe

CLASSES = tuple(f"class {number:03}" for number in range(1000))
"""As many classes as in ImageNet."""
NUM_CALIBRATION_PHOTOS = 100


def export_model(
    network: str, folder: Path, size: int, crop: int, *, in_int8: bool = False, for_gpu: bool = False
) -> Path:
    """Write model and manifest of a network into `folder`, as version 1 of a model named after the network.

    Images are resized to `size` pixels, and the network sees the centre `crop` pixels. `in_int8` adds an accepted int8
    model. `for_gpu` adds the program for the target `gpu`.
    """
    served = ServedNetwork(_classifier(network, crop))
    path = export_onnx(served, crop, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (1, crop, crop, 3), dtype=np.uint8)
    normalization = served.normalize.spec
    preprocessing = Preprocessing(size=size, crop=crop, max_pixels=50_000_000, normalization=normalization)
    manifest = ModelManifest(
        name=network,
        version="1",
        network=network,
        classes=CLASSES,
        preprocessing=preprocessing,
        preprocessing_hash=preprocessing.hash,
        run_id="benchmark",
        data_version="benchmark",
        git_commit=None,
        metrics={},
        onnx_sha256=file_sha256(path),
        program_sha256=file_sha256(export_program(served, crop, folder)) if for_gpu else None,
        golden=make_golden(pixels[0], TorchPredictor(served)(pixels)[0]),
        int8=_add_int8(folder, preprocessing, pixels) if in_int8 else None,
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def _add_int8(folder: Path, preprocessing: Preprocessing, golden_image: Pixels) -> Int8:
    """Quantize the model in `folder`, without checks, because the network is untrained."""
    path = folder / INT8_FILE
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        photos = photo_folder(None, scratch / "photos", NUM_CALIBRATION_PHOTOS)
        prepare_photos(photos, scratch, preprocessing.size)
        quantize(folder / MODEL_FILE, path, Calibrated(scratch / "prepared", preprocessing.crop))
    (golden,) = run_session(open_session(path), golden_image).tolist()
    return Int8(
        refusal=None, accuracy_drop={}, seconds={}, num_bytes={}, onnx_sha256=file_sha256(path), golden=tuple(golden)
    )


def _classifier(network: str, crop: int) -> ImageClassifier:
    torch.manual_seed(0)
    axes: Any = np.eye(3).tolist()
    color = ColorStatistics(mean=(0.5,) * 3, std=(0.25,) * 3, eigenvalues=(0.1,) * 3, eigenvectors=axes)
    augmentation = Augmentation(AugmentationConfig(), color, crop=crop, flip=False, seed=0, num_classes=len(CLASSES))
    built = build_network(ModelConfig.model_validate({"network": network, "input_size": crop}), len(CLASSES), crop)
    return ImageClassifier(built, augmentation, resolve_recipe(TrainingConfig(recipe="modern"))).eval()
