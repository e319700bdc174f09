import json
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.files import whole_file
from serving.packaging.bento import MODEL_FOLDER, Bento, read_placement
from serving.packaging.local_endpoint import Endpoint

if TYPE_CHECKING:
    from data.batches.sample import Sample

TOLERANCE = 1e-3
EVIDENCE_FILE = "verified.json"


def verified_answer(bento: Bento) -> dict[str, Any] | None:
    """Return the answer that `verify_bento` recorded, or None."""
    path = bento.path / EVIDENCE_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def verify_bento(bento: Bento, sample: "Sample") -> dict[str, Any]:
    """Serve a Bento, post an original image, and compare the answer with a prediction on the prepared pixels.

    Equal answers show that the endpoint decodes, resizes and crops in the same way as data preparation.

    Raises:
        UserError: the endpoint does not start, or its answer differs.

    """
    predictor = resolve_name(read_placement(bento).runtime.predictor)(bento.path / "src" / MODEL_FOLDER)
    (expected,) = predictor(sample.prepared[None])
    with Endpoint(bento) as endpoint:
        answer = endpoint.classify(sample.image)
    best = answer["predictions"][0]
    expected_label = predictor.manifest.classes[int(expected.argmax())]
    if best["label"] != expected_label or abs(best["probability"] - float(expected.max())) > TOLERANCE:
        raise UserError(
            f"{bento.tag} answers {sample.origin} with '{best['label']}' ({best['probability']:.4f}), the model itself "
            f"with '{expected_label}' ({float(expected.max()):.4f}): it must not be deployed",
            exit_code=1,
        )
    with whole_file(bento.path / EVIDENCE_FILE) as temporary:
        temporary.write_text(json.dumps({"image": sample.origin, **answer}, indent=1), encoding="utf-8")
    return answer
