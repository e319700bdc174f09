"""Accuracy on real photographs and time to an endpoint, compared with Ultralytics in the same time.

Convoy makes a project and runs its whole pipeline, from the folder to the answering endpoint: once as a probe of a
pretrained network, and with `--finetune` once more with all layers. Ultralytics trains its classifier from random
weights on the same training images, for the duration of Convoy's probe, and is tested on the same test images. It is
installed from the package index into its own environment.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.report import Report, run
from core.errors import UserError

NETWORK, PIXELS = "efficientnet_lite0", 160
PEER_PACKAGES = ("ultralytics", "ultralytics-thop", "opencv-python-headless", "polars", "polars-runtime-32")
"""Packages that Ultralytics needs, and that Convoy's environment does not have."""


def measure(arguments: argparse.Namespace) -> Report:
    """Run the pipeline and its peer, one after the other.

    Raises:
        UserError: `--folder` is missing.

    """
    if arguments.folder is None:
        raise UserError("photos needs real photographs, <class>/*.jpg: say --folder DIR")
    report = Report("photos")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        recipes = {"probe": (0.86, 3), "finetune": (0.91, 12)}
        project, accuracy, hours = scratch / "probe", 0.0, 0.0
        for recipe in list(recipes)[: 1 + arguments.finetune]:
            minutes, found = _pipeline(scratch / recipe, arguments.folder, recipe)
            wanted, limit = recipes[recipe]
            report.add(f"Convoy, {recipe}: test accuracy", found["test/accuracy"], "", goal=wanted)
            report.add(f"Convoy, {recipe}: folder to endpoint", minutes, "min", at_most=limit)
            if recipe == "probe":
                accuracy, hours = found["test/accuracy"], minutes / 60
        peer, epochs = _ultralytics(project, scratch, hours)
        reference = f"random weights, {60 * hours:.1f} min of training, {epochs} epochs"
        report.add("Ultralytics: test accuracy", peer, "", reference=reference)
        report.add("Convoy's probe - Ultralytics", 100 * (accuracy - peer), "points", goal=10)
    return report


def _pipeline(project: Path, photos: Path, recipe: str) -> tuple[float, dict[str, float]]:
    """Return the minutes from the folder to the endpoint's answer, and the champion's metrics."""
    convoy = Path(sys.executable).with_name("convoy")
    values = [f"model.network={NETWORK}", "model.weights=imagenet", f"data.size={PIXELS}"]
    values += [f"model.input_size={PIXELS}", f"training.recipe={recipe}"]
    environment = os.environ | {"PREFECT_HOME": str(project.with_suffix(".prefect"))}
    options = [word for value in values for word in ("--set", value)]
    subprocess.run([convoy, "init", project, "--path", photos.resolve(), *options], check=True)
    start = time.perf_counter()
    subprocess.run([convoy, "run"], cwd=project, env=environment, check=True, stdout=sys.stderr)
    minutes = (time.perf_counter() - start) / 60
    status = subprocess.check_output([convoy, "status", "--json"], cwd=project, env=environment)
    metrics: dict[str, float] = json.loads(status)["champion"]["metrics"]
    return minutes, metrics


def _ultralytics(project: Path, scratch: Path, hours: float) -> tuple[float, int]:
    """Return the test accuracy of the peer, and its number of epochs."""
    folder = scratch / "split"
    _write_splits(project, folder)
    environment = scratch / "environment"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    python = environment / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--no-deps", "--python", python, *PEER_PACKAGES]
    subprocess.run(install, check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"))
    peer = Path(__file__).parent / "peers" / "ultralytics_peer.py"
    command = [python, peer, str(folder), str(hours), str(PIXELS), str(scratch / "runs")]
    silent = os.environ | {"YOLO_CONFIG_DIR": str(scratch), "YOLO_OFFLINE": "true"}
    done = subprocess.run(command, cwd=scratch, env=silent, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found["accuracy"], found["epochs"]


def _write_splits(project: Path, folder: Path) -> None:
    """Write the original files as <split>/<class>/<sha256>, in Convoy's splits."""
    index = pq.read_table(project / "data" / "prepared" / "index.parquet", columns=["split", "sha256"]).to_pydict()
    split_of = dict(zip(index["sha256"], index["split"], strict=True))
    for shard in sorted((project / "data" / "raw").glob("*.parquet")):
        for batch in pq.ParquetFile(shard).iter_batches(256, columns=["image", "label", "sha256"]):
            for row in batch.to_pylist():
                if split := split_of.get(row["sha256"]):
                    target = folder / split / row["label"] / f"{row['sha256']}.jpg"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(row["image"])


if __name__ == "__main__":
    finetune = ("--finetune", {"action": "store_true", "help": "train all layers too"})
    run(measure, [("--folder", {"type": Path, "help": "real photographs, <class>/*.jpg"}), finetune])
