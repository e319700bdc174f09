from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_job

from core.errors import UserError
from data.batches.shards import PreparedImages
from models.config import ModelConfig
from models.exported.export import ServedNetwork, TorchPredictor
from models.judging.evaluate import predict
from models.networks.registry import build_network
from models.training.features import Backbone, FeatureExtractor, last_linear
from models.training.job import BEST
from models.training.probe import Labelled, fit_head, train_probe
from models.training.train import build_classifier, load_classifier, train


@pytest.fixture(scope="module")
def job(prepared):
    model = ModelConfig(network="efficientnet_lite0", weights="imagenet")
    return replace(tiny_job(prepared, max_epochs=None, batch_size=None, recipe="probe"), model=model)


@pytest.fixture(scope="module")
def probed(job, tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    return folder, train_probe(job, build_classifier(job), folder / BEST, folder / "features")


def test_what_is_kept_is_one_network_that_predicts_what_was_measured(job, probed):
    folder, metrics = probed
    images = PreparedImages(job.prepared, job.manifest, "val")
    served = ServedNetwork(load_classifier(job, folder / BEST))
    measured = predict(TorchPredictor(served), images, job.manifest.classes, job.input_size).summarize()
    assert measured.accuracy == pytest.approx(metrics["val/accuracy"])
    assert measured.loss == pytest.approx(metrics["val/loss"], rel=1e-3)
    assert metrics["val/accuracy"] > 0.9


def test_known_images_are_not_computed_again(job, probed, monkeypatch):
    folder, _ = probed
    extract = FeatureExtractor(build_classifier(job), folder / "features")
    computed, compute = [], extract._session.run
    session = SimpleNamespace(run=lambda names, batch: computed.append(len(batch["image"])) or compute(names, batch))
    monkeypatch.setattr(extract, "_session", session)
    images = PreparedImages(job.prepared, job.manifest, "train")
    extract(images, "train")
    assert computed == []
    gather = images.gather

    def with_one_changed(indices):
        return gather(indices) + (indices == 3)[:, None, None, None].astype(np.uint8)

    monkeypatch.setattr(images, "gather", with_one_changed)
    extract(images, "train")
    assert computed == [1]


def test_features_are_those_of_the_network(job, probed):
    folder, _ = probed
    classifier = build_classifier(job)
    images = PreparedImages(job.prepared, job.manifest, "val")
    found = FeatureExtractor(classifier, folder / "features")(images, "val")
    with torch.inference_mode():
        expected = Backbone(classifier).eval()(torch.from_numpy(images.gather(np.arange(len(images)))))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)


def test_damaged_features_are_computed_again(job, probed):
    folder, _ = probed
    for path in (folder / "features").glob("*/*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    images = PreparedImages(job.prepared, job.manifest, "val")
    assert len(FeatureExtractor(build_classifier(job), folder / "features")(images, "val")) == len(images)


def test_fine_tuning_starts_from_the_probe_and_averages_its_weights(job, probed, tmp_path):
    """With a rate of nearly 0, the averaged network is the probe's."""
    folder, metrics = probed
    options = {"recipe": "finetune", "learning_rate": 1e-12, "max_epochs": 1}
    fine = replace(job, training=job.training.model_copy(update=options))
    (tmp_path / "start.ckpt").hardlink_to(folder / BEST)
    train(fine, tmp_path)
    images = PreparedImages(fine.prepared, fine.manifest, "val")
    served = ServedNetwork(load_classifier(fine, tmp_path / BEST))
    measured = predict(TorchPredictor(served), images, fine.manifest.classes, fine.input_size).summarize()
    assert measured.accuracy == pytest.approx(metrics["val/accuracy"], abs=0.1)
    assert "averaging_state" in torch.load(tmp_path / BEST, weights_only=True)


def test_the_regularization_is_that_which_loses_least_on_validation_images():
    """Few images of many features: the weakest regularization learns the noise."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(3, 50))

    def draw(count):
        labels = rng.integers(3, size=count)
        return Labelled((centers[labels] + 3 * rng.normal(size=(count, 50))).astype(np.float32), labels)

    train_images, val = draw(60), draw(500)
    head = fit_head(train_images, val, 3)
    assert head.strength < 1
    assert head.accuracy(val.features, val.labels) > 0.6
    assert head.loss(val.features, val.labels) < np.log(3)


def test_two_classes_and_one_that_was_not_seen():
    features = np.array([[0.0], [1.0], [0.1], [0.9]] * 5, dtype=np.float32)
    labels = np.array([0, 2, 0, 2] * 5)
    head = fit_head(Labelled(features, labels), Labelled(features, labels), 3)
    assert head.logits(features).argmax(axis=1).tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("name", "layer"), [("efficientnet_lite0", "classifier"), ("alexnet", "classifier.8"), ("lenet5", "classifier.2")]
)
def test_the_last_layer_of_a_network(name, layer):
    found, linear = last_linear(build_network(ModelConfig(network=name), 3, 64))
    assert (found, linear.out_features) == (layer, 3)


def test_a_network_without_a_linear_layer():
    with pytest.raises(UserError, match=r"has no linear layer at its end"):
        last_linear(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1)))
