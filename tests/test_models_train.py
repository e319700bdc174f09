import math

import numpy as np
import pytest
import torch
from conftest import draw_classes
from torch import nn

from data.config import AugmentationConfig, DataConfig
from data.errors import UserError
from data.ingest import ingest
from data.prepare import prepare
from data.shards import PreparedImages
from models.classifier import ImageClassifier
from models.config import ModelConfig, TrainingConfig
from models.export import ServedNetwork, TorchPredictor, export_onnx
from models.job import TrainingJob
from models.recipes import RECIPES, make_optimizer, make_scheduler, resolve_recipe
from models.train import BEST, LAST, build_classifier, finished_epochs, load_classifier, train


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    photos = draw_classes(folder / "photos", ["cat", "dog", "emu"], 40)
    config = DataConfig(source="folder", path=photos, size=24)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder / "prepared"


def job(prepared, network="lenet5", **training):
    options = {"max_epochs": 3, "batch_size": 16, "precision": "fp32", "accelerator": "cpu"} | training
    model = ModelConfig(network=network, input_size=20)
    return TrainingJob(prepared, "version", model, AugmentationConfig(), TrainingConfig(**options))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_training_lowers_the_loss_and_is_repeatable(prepared, tmp_path):
    first = train(job(prepared), tmp_path / "first")
    train(job(prepared), tmp_path / "second")
    assert first.resumed_from is None
    assert_equal(weights(tmp_path / "first" / LAST), weights(tmp_path / "second" / LAST))
    images = PreparedImages(prepared, job(prepared).manifest, "val")
    pixels, labels = torch.from_numpy(images.gather(np.arange(len(images)))), torch.from_numpy(images.labels)

    def loss(classifier):
        with torch.no_grad():
            return nn.functional.cross_entropy(classifier.eval()(pixels), labels)

    assert loss(load_classifier(job(prepared), first.checkpoint)) < loss(build_classifier(job(prepared)))


# AlexNet draws for dropout; the paper's rate follows from what validation has brought so far.
@pytest.mark.parametrize(("network", "recipe"), [("lenet5", "modern"), ("lenet5", "paper"), ("alexnet", "modern")])
def test_a_stopped_training_ends_with_the_weights_of_one_that_was_not(prepared, tmp_path, monkeypatch, network, recipe):
    work = job(prepared, network, recipe=recipe)
    train(work, tmp_path / "whole")
    start = ImageClassifier.on_train_epoch_start

    def stop_in_the_third(classifier):
        if classifier.current_epoch == 2:
            raise KeyboardInterrupt
        start(classifier)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, "on_train_epoch_start", stop_in_the_third)
        with pytest.raises(KeyboardInterrupt):
            train(work, tmp_path / "stopped")
    assert finished_epochs(tmp_path / "stopped") == 2
    assert train(work, tmp_path / "stopped").resumed_from == 2
    for name in (BEST, LAST):
        assert_equal(weights(tmp_path / "whole" / name), weights(tmp_path / "stopped" / name))
    assert {path.name for path in (tmp_path / "stopped").iterdir()} == {BEST, LAST}


def test_a_damaged_checkpoint_falls_back_to_the_one_before(prepared, tmp_path):
    train(job(prepared, max_epochs=1), tmp_path)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:1000])
    assert finished_epochs(tmp_path) == 1, "that of the best epoch"
    assert not (tmp_path / LAST).exists()
    (tmp_path / BEST).write_bytes(b"no checkpoint")
    assert finished_epochs(tmp_path) is None


def test_a_loss_that_is_no_number_is_told_and_the_last_good_epoch_kept(prepared, tmp_path):
    train(job(prepared, max_epochs=1), tmp_path)
    good = weights(tmp_path / LAST)
    with pytest.raises(UserError, match=r"epoch \d, step \d+, learning rate .* lower training.learning_rate"):
        train(job(prepared, learning_rate=1e30, max_epochs=4), tmp_path / "bad")
    assert_equal(weights(tmp_path / LAST), good)
    assert all(torch.isfinite(value).all() for value in good.values())


@pytest.mark.parametrize("network", ["lenet5", "alexnet"])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_export_answers_as_the_network_for_any_batch(prepared, tmp_path, network, batch):
    import onnxruntime

    torch.manual_seed(0)
    served = ServedNetwork(build_classifier(job(prepared, network)))
    for parameter in served.parameters():
        # an untrained network answers nearly the same to everything
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = np.random.default_rng(0).integers(0, 256, (batch, 20, 20, 3), dtype=np.uint8)
    expected = TorchPredictor(served)(images)
    session = onnxruntime.InferenceSession(export_onnx(served, 20, tmp_path))
    (found,) = session.run(["probabilities"], {"image": images})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_a_key_follows_from_data_parameters_and_code(prepared):
    assert job(prepared).key == job(prepared).key
    assert job(prepared).key != job(prepared, max_epochs=4).key
    # how often a curve gets a point changes no weight
    assert job(prepared).key == job(prepared, log_every_n_steps=7).key


def test_the_papers_rule():
    """Section 5: v <- 0.9 v - 0.0005 e w - e g; w <- w + v, with e = 0.01 at a batch of 128."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = make_optimizer(RECIPES["paper"], layer, batch_size=128)
    w, v = 2.0, 0.0
    for g in (1.0, -0.5, 0.25):
        layer.weight.grad = torch.full_like(layer.weight, g)
        optimizer.step()
        v = 0.9 * v - 0.0005 * 0.01 * w - 0.01 * g
        w += v
        assert layer.weight.item() == pytest.approx(w, rel=1e-6)


def test_the_modern_schedule_and_batch_scaling():
    recipe = resolve_recipe(TrainingConfig(learning_rate=0.1, warmup_epochs=1))
    optimizer = make_optimizer(recipe, nn.Linear(2, 2), batch_size=256)
    scheduler = make_scheduler(recipe, optimizer, steps_per_epoch=10, max_epochs=5)["scheduler"]
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # 256 images a step, twice the 128 that the rate is given for: 0.2
    assert rates[0] == pytest.approx(0.2 / 10)
    assert max(rates) == rates[9] == pytest.approx(0.2)
    # a quarter of the way down the cosine: 10 of 40 steps
    assert rates[20] == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[-1] < 0.001


def test_modern_decay_spares_biases_and_the_paper_spares_nothing():
    layer = nn.Linear(2, 2)
    decays = {
        len(group["params"]): group["weight_decay"]
        for group in make_optimizer(RECIPES["paper"], layer, 128).param_groups
    }
    assert decays == {2: 5e-4}
    assert [group["weight_decay"] for group in make_optimizer(RECIPES["modern"], layer, 128).param_groups] == [
        5e-4,
        0.0,
    ]
