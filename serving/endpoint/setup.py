"""What is packed around this file: the settings of an endpoint, its model, and the app that answers by them."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from serving.config import ServingConfig
from serving.endpoint.app import create_app
from serving.endpoint.auth import read_tokens
from serving.endpoint.batching import Limits
from serving.endpoint.middleware import Front
from serving.packaging.tuning import EXAMPLES_FILE, PACKING_FILE, PLACEMENT_FILE, SCHEMA_FILE, Packing
from serving.targets import Placement

if TYPE_CHECKING:
    from serving.endpoint.classifier import Classifier

ENVIRONMENT = {"BENTOML_DO_NOT_TRACK": "true", "ORT_DISABLE_TELEMETRY": "1"}
"""BentoML and onnxruntime both report their use to their makers unless told otherwise."""

logger = logging.getLogger("convoy")

# Read at import, here and nowhere else: BentoML wants its settings when its service is made.
FOLDER = Path(__file__).resolve().parents[2]
config = ServingConfig.model_validate_json((FOLDER / "serving.json").read_text(encoding="utf-8"))
packing = Packing.model_validate_json((FOLDER / PACKING_FILE).read_text(encoding="utf-8"))
placement = Placement.model_validate_json((FOLDER / PLACEMENT_FILE).read_text(encoding="utf-8"))
target = placement.target
config = config.model_copy(update={"max_body_mb": min(config.max_body_mb, target.max_body_mb)})


def make_app(get_classifier: "Callable[[], Classifier | None]") -> Front:
    """Make the app, which asks for the tokens that the environment names."""
    limits = Limits(
        max_batch=packing.max_batch,
        threads=target.threads,
        streams=target.streams(packing.num_cores),
        patience_seconds=target.patience_ms / 1000,
        max_queue=config.max_queue,
        deadline_seconds=config.deadline_seconds,
    )
    tokens, examples, schema = read_tokens(os.environ), _packed(EXAMPLES_FILE), _packed(SCHEMA_FILE)
    return create_app(
        get_classifier,
        config,
        limits=limits,
        tokens=tokens,
        examples=json.loads(examples) if examples else None,
        schema=schema or b"{}",
    )


def _packed(name: str) -> bytes | None:
    path = FOLDER / name
    return path.read_bytes() if path.is_file() else None


def load_classifier() -> "Classifier | None":
    """Load the model; where that fails log why, and leave an endpoint that lives but is never ready.

    An endpoint that ended instead would be started again and again, and nobody would see a reason.
    """
    # Here and not above: `bentoml build` imports this module too, and can do without onnxruntime.
    from serving.endpoint.classifier import Classifier

    try:
        classifier = Classifier(
            FOLDER / "model",
            placement.runtime,
            num_threads=packing.num_cores,
            decoding_mb=target.decoding_mb,
            decoding_seconds=target.decoding_seconds,
        )
    except UserError as error:
        logger.critical("the model cannot be served: %s", error)
        return None
    except Exception:
        logger.exception("the model cannot be served")
        return None
    if config.samples:
        from serving.endpoint.samples import open_sampler

        classifier.observe = open_sampler(os.environ, classifier.manifest, config.samples, config.samples_days)
    return classifier
