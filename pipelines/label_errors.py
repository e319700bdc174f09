"""Probably wrong labels, found by features of a pretrained network, whatever network the project trains."""

from data.batches.shards import PreparedImages
from data.manifest import read_data_manifest
from data.quality.decisions import DECISIONS_FILE, read_decisions
from data.quality.findings import Finding
from data.quality.label_errors import wrong_labels
from data.splits import SPLITS
from models.config import ModelConfig
from models.training.features import FeatureExtractor
from models.training.train import build_classifier
from pipelines.config import Config
from pipelines.workspace import FEATURES, PREPARED, require_data_version, training_job

MODEL = ModelConfig(network="efficientnet_lite0", weights="imagenet")


def find_wrong_labels(config: Config) -> Finding:
    """Compare each label with the answer of a probe that was not trained on the image. The worst labels come first.

    Images that `data/decisions.csv` keeps are left out.

    Raises:
        UserError: nothing has been prepared.

    """
    manifest = read_data_manifest(PREPARED)
    job = training_job(config.model_copy(update={"model": MODEL}), require_data_version())
    extract = FeatureExtractor(build_classifier(job), FEATURES)
    features = {split: extract(PreparedImages(PREPARED, manifest, split), split) for split in SPLITS}
    kept = {decision.sha256 for decision in read_decisions(DECISIONS_FILE) if decision.what == "keep"}
    return wrong_labels(PREPARED, manifest, features, kept)
