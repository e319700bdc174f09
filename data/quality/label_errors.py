"""Images whose label is probably wrong: confident learning (Northcutt, Jiang and Chuang, JAIR 2021).

Shapes: N images, D features, K classes.
"""

import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from data.manifest import DataManifest
from data.preparing.stage import INDEX_FILE
from data.quality.findings import Evidence, Finding
from data.splits import SPLITS, Split

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

MAX_LISTED = 1000
NUM_FOLDS = 5
MAX_ITERATIONS = 200
"""Of the solver. A ranking of images needs no more iterations."""
REGULARIZATION = 0.01
"""scikit-learn's C, for standardized features. A probe that fits doubtful labels closely would repeat them."""


class Suspects(NamedTuple):
    """Suspicious images, most suspicious first."""

    images: Labels
    """indices [M]"""
    likely: Labels
    """probable label of each image [M]"""
    confidence: npt.NDArray[np.float64]
    """probability of the likely label [M]"""
    skipped: list[int]
    """classes with fewer images than folds, which are not checked"""


def find_suspects(features: Floats, labels: Labels, *, num_folds: int = NUM_FOLDS) -> Suspects:
    """Compare each label with the answer of a probe that was not trained on this image.

    Args:
        features: of a pretrained network, [N, D].
        labels: given labels, [N].
        num_folds: number of probes. Each probe is trained on all folds except one.

    """
    counts = np.bincount(labels)
    skipped = np.flatnonzero((counts > 0) & (counts < num_folds))
    looked_at = np.flatnonzero(~np.isin(labels, skipped))
    classes, codes = np.unique(labels[looked_at], return_inverse=True)
    if len(classes) < 2:
        nothing = np.empty(0, dtype=np.int64)
        return Suspects(nothing, nothing, np.empty(0), skipped.tolist())
    probabilities = out_of_fold(features[looked_at], codes, num_folds)
    order, likely = rank(probabilities, codes)
    return Suspects(looked_at[order], classes[likely], probabilities[order, likely], skipped.tolist())


def out_of_fold(features: Floats, labels: Labels, num_folds: int = NUM_FOLDS) -> npt.NDArray[np.float64]:
    """Predict each image by a probe (multinomial logistic regression) that has not seen it: float64 [N, K].

    Args:
        features: [N, D].
        labels: 0 to K - 1, each label at least `num_folds` times, [N].
        num_folds: number of folds. The images of a class go to the folds in turn.

    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fold = np.empty(len(labels), dtype=np.int64)
    for label in range(labels.max() + 1):
        fold[labels == label] = np.arange((labels == label).sum()) % num_folds
    probabilities = np.empty((len(labels), labels.max() + 1))
    for held_out in (fold == number for number in range(num_folds)):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARIZATION, max_iter=MAX_ITERATIONS))
        with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
            probe.fit(features[~held_out], labels[~held_out])
        probabilities[held_out] = probe.predict_proba(features[held_out])
    return probabilities


def rank(probabilities: npt.NDArray[np.float64], labels: Labels) -> tuple[Labels, Labels]:
    """Find the images that confidently belong to another class, and rank them by the margin of this class.

    An image counts for a class if its probability reaches the mean probability of the images with this label.

    Args:
        probabilities: out of fold, [N, K].
        labels: given labels, [N].

    Returns:
        Indices of the suspects, worst first, and their likely labels.

    """
    num_classes = probabilities.shape[1]
    thresholds = np.array([probabilities[labels == label, label].mean() for label in range(num_classes)])
    confident = np.where(probabilities >= thresholds, probabilities, 0)
    likely = confident.argmax(axis=1)
    suspects = np.flatnonzero((confident.max(axis=1) > 0) & (likely != labels))
    own = probabilities[suspects, labels[suspects]]
    margin = probabilities[suspects, likely[suspects]] - own
    order = np.argsort(-margin, kind="stable")
    return suspects[order], likely[suspects[order]]


def wrong_labels(
    prepared: Path, manifest: DataManifest, features: Mapping[Split, Floats], kept: Collection[str] = ()
) -> Finding:
    """Report the images of all splits whose label is probably wrong, worst first.

    Args:
        prepared: folder of the arrays.
        manifest: manifest of this folder.
        features: features of the images of each split, in the order of its shards, [N, D].
        kept: checksums (sha256) of images that a person found right.

    """
    rows = pq.read_table(prepared / INDEX_FILE).to_pylist()
    stems = [stem for split in SPLITS for stem in _stems(manifest, split)]
    number = {name: index for index, name in enumerate(manifest.classes)}
    labels = np.array([number[row["label"]] for row in rows], dtype=np.int64)
    suspects = find_suspects(np.concatenate([features[split] for split in SPLITS]), labels)
    groups = [
        (_evidence(rows[image], stems[image], manifest.classes[likely], confidence),)
        for image, likely, confidence in zip(suspects.images, suspects.likely, suspects.confidence, strict=True)
        if rows[image]["sha256"] not in kept
    ]
    words = "1 image whose label is" if len(groups) == 1 else f"{len(groups):,} images whose label is"
    skipped = "".join(
        f"; class {manifest.classes[label]!r} has fewer than {NUM_FOLDS} images and is not looked at"
        for label in suspects.skipped
    )
    return Finding(
        kind="wrong_labels",
        severity="warning",
        summary=f"{words} probably wrong{skipped}",
        count=len(groups),
        groups=tuple(groups[:MAX_LISTED]),
    )


def _stems(manifest: DataManifest, split: Split) -> list[str]:
    """Return the stem of the raw shard of each image of a split."""
    shards = [shard for shard in manifest.shards if shard.split == split]
    return [Path(shard.name).stem.removeprefix(f"{split}-") for shard in shards for _ in range(shard.num_images)]


def _evidence(row: dict[str, str], shard: str, likely: str, confidence: float) -> Evidence:
    split: dict[str, Split] = {name: name for name in SPLITS}
    return Evidence(
        origin=row["origin"],
        note=f"likely {likely} ({confidence:.0%})",
        sha256=row["sha256"],
        label=row["label"],
        split=split[row["split"]],
        shard=shard,
        likely=likely,
    )
