import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.decode import DecodeError
from serving.classifier import Classifier


def predict_files(model: Path, files: Sequence[Path], top_k: int, *, as_json: bool) -> int:
    """Classify image files one after another; returns 0, or 1 where one of them is no usable image."""
    classifier = Classifier(model)
    answers = [_predict(classifier, file, top_k) for file in files]
    if as_json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
    else:
        for answer in answers:
            _print(answer)
    return 1 if any("error" in answer for answer in answers) else 0


def _predict(classifier: Classifier, file: Path, top_k: int) -> dict[str, Any]:
    try:
        return {"file": str(file), **classifier.classify(file.read_bytes(), top_k)}
    except DecodeError as error:
        return {"file": str(file), "error": str(error)}
    except OSError as error:
        return {"file": str(file), "error": error.strerror}


def _print(answer: dict[str, Any]) -> None:
    if "error" in answer:
        print(f"convoy: {answer['file']}: {answer['error']}", file=sys.stderr)
        return
    classes = "  ".join(f"{row['label']} {row['probability']:.3f}" for row in answer["predictions"])
    print(f"{answer['file']}: {classes}")
