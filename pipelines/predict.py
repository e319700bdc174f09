import json
import os
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
    # Whatever bytes a name is made of, it can be printed.
    name = os.fsencode(file).decode("utf-8", "backslashreplace")
    try:
        return {"file": name, **classifier.classify(file.read_bytes(), top_k)}
    except DecodeError as error:
        return {"file": name, "error": str(error)}
    except OSError as error:
        return {"file": name, "error": error.strerror}


def _print(answer: dict[str, Any]) -> None:
    # One line a file, whatever is in its name.
    name = answer["file"] if answer["file"].isprintable() else repr(answer["file"])
    if "error" in answer:
        print(f"convoy: {name}: {answer['error']}", file=sys.stderr)
        return
    classes = "  ".join(f"{row['label']} {row['probability']:.3f}" for row in answer["predictions"])
    print(f"{name}: {classes}")
