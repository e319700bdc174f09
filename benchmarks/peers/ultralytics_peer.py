"""Ultralytics as in its documentation: `python ultralytics_peer.py FOLDER HOURS PIXELS RUNS` trains a classifier.

FOLDER holds train/, val/ and test/ with a folder per class. The network is the newest small one, from random weights.
"""

import json
import sys

from ultralytics import YOLO, settings

NETWORK = "yolo11n-cls.yaml"


def main() -> None:
    """Train for HOURS, and print the accuracy on the test images and the number of epochs as JSON."""
    folder, hours, pixels, runs = sys.argv[1:]
    # Ultralytics would report to any installed tracker.
    settings.update({"mlflow": False})
    model = YOLO(NETWORK)
    model.train(
        data=folder, time=float(hours), imgsz=int(pixels), device="cpu", seed=0, project=runs, name="train", plots=False
    )  # fmt: skip
    found = model.val(data=folder, split="test", imgsz=int(pixels), device="cpu", plots=False, project=runs)
    print(json.dumps({"accuracy": float(found.top1), "epochs": model.trainer.epoch + 1}))


if __name__ == "__main__":
    main()
