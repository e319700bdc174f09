from dataclasses import replace

import numpy as np
import pytest
from conftest import tiny_job
from PIL import Image, ImageOps

from data.batches.shards import PreparedImages, center_crop
from models.config import ModelConfig
from models.judging.evaluate import BATCH_SIZE, Predictions, predict, ten_crop_accuracy, ten_crops
from models.steps import evaluate_run
from models.tracking.runs import Tracking
from models.training.train import train

#                         a    b    c    d    e    f
PROBABILITIES = np.array([[.50, .20, .10, .10, .05, .05],  # a, right
                          [.05, .60, .10, .10, .10, .05],  # taken for b, is f: four classes are likelier, one as likely
                          [.10, .70, .05, .05, .05, .05],  # b, right
                          [.01, .90, .03, .02, .02, .02]], dtype=np.float32)  # taken for b, is a: the sixth # fmt: skip
LABELS = np.array([0, 5, 1, 0])
CLASSES = tuple("abcdef")


def test_figures_by_hand():
    evaluation = Predictions(PROBABILITIES, LABELS, CLASSES).summarize()
    assert evaluation.num_images == 4
    assert evaluation.accuracy == 0.5
    assert evaluation.top5_accuracy == 0.75
    assert evaluation.class_accuracy == {"a": 0.5, "b": 1.0, "f": 0.0}
    assert evaluation.loss == pytest.approx(-np.log([0.5, 0.05, 0.7, 0.01]).mean(), rel=1e-5)
    assert evaluation.metrics == {
        "test/accuracy": 0.5,
        "test/top5_accuracy": 0.75,
        "test/loss": evaluation.loss,
        "test/worst_class_accuracy": 0.0,
    }


def test_figures_of_random_answers_counted_one_by_one():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(8), 200).astype(np.float32)
    labels = rng.integers(0, 8, 200)
    predictions = Predictions(probabilities, labels, tuple("abcdefgh"))
    orders = [sorted(range(8), key=lambda index: -row[index]) for row in probabilities.tolist()]
    right = [order[0] == label for order, label in zip(orders, labels, strict=True)]
    in_five = [label in order[:5] for order, label in zip(orders, labels, strict=True)]
    evaluation = predictions.summarize()
    assert evaluation.accuracy == pytest.approx(sum(right) / 200)
    assert evaluation.top5_accuracy == pytest.approx(sum(in_five) / 200)
    counts = predictions.confusion()
    for true in range(8):
        for guess in range(8):
            pairs = zip(orders, labels, strict=True)
            assert counts[true, guess] == sum(order[0] == guess and label == true for order, label in pairs)
    assert list(evaluation.class_accuracy.values()) == pytest.approx(list(counts.diagonal() / counts.sum(axis=1)))


def test_with_five_classes_or_fewer_every_answer_is_among_the_first_five():
    assert Predictions(PROBABILITIES[:, :5], np.array([4, 4, 4, 4]), CLASSES[:5]).summarize().top5_accuracy == 1


def test_certainty_of_the_wrong_class_has_a_finite_loss():
    certain = np.array([[1.0, 0.0]], dtype=np.float32)
    assert Predictions(certain, np.array([1]), ("a", "b")).summarize().loss == pytest.approx(-np.log(1e-12))
    assert Predictions(certain, np.array([0]), ("a", "b")).summarize().loss == 0


def test_confusion_has_true_classes_in_rows():
    counts = Predictions(PROBABILITIES, LABELS, CLASSES).confusion()
    assert counts.sum() == 4
    assert (counts[0, 0], counts[0, 1], counts[1, 1], counts[5, 1]) == (1, 1, 1, 1)


def test_the_surest_errors_come_first():
    predictions = Predictions(PROBABILITIES, LABELS, CLASSES)
    assert predictions.worst_errors(5).tolist() == [3, 1]
    assert predictions.worst_errors(1).tolist() == [3]
    assert Predictions(PROBABILITIES[:1], LABELS[:1], CLASSES).worst_errors(5).tolist() == []


@pytest.mark.parametrize(("stored", "seen", "start"), [(24, 24, 0), (24, 20, 2), (25, 20, 2), (24, 1, 11)])
def test_the_centre_is_kept(stored, seen, start):
    images = np.arange(stored * stored * 3, dtype=np.uint8).reshape(1, stored, stored, 3)
    cropped = center_crop(images, seen)
    assert cropped.shape == (1, seen, seen, 3)
    assert cropped.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(cropped[0, 0, 0], images[0, start, start])


@pytest.mark.parametrize("limit", [None, 1, BATCH_SIZE, 10_000])
def test_every_image_is_seen_once_in_its_place(prepared, limit):
    """A model that answers with the colours of the centre shows which image it has seen."""

    def colors_of_the_centre(images):
        batches.append(len(images))
        return images[:, 10, 10].astype(np.float32)

    batches: list[int] = []
    images = PreparedImages(prepared, tiny_job(prepared).manifest, "train")
    predictions = predict(colors_of_the_centre, images, ("cat", "dog", "emu"), 20, limit=limit)
    count = min(len(images), limit or len(images))
    everything = images.gather(np.arange(count))
    np.testing.assert_array_equal(predictions.probabilities, everything[:, 12, 12])
    np.testing.assert_array_equal(predictions.labels, images.labels[:count])
    assert max(batches) <= BATCH_SIZE


def pillows_crops(image, size):
    """The four corners and the centre, and their mirror images, in Pillow's words."""
    end = image.width - size
    corners = [(0, 0), (end, 0), (0, end), (end, end), (end // 2, end // 2)]
    squares = [image.crop((left, top, left + size, top + size)) for left, top in corners]
    return [np.asarray(one) for square in squares for one in (square, ImageOps.mirror(square))]


@pytest.mark.parametrize(("stored", "seen"), [(24, 20), (25, 20), (24, 24), (24, 1)])
def test_ten_crops_are_corners_centre_and_their_mirror_images(stored, seen):
    images = np.random.default_rng(0).integers(0, 256, (3, stored, stored, 3), dtype=np.uint8)
    found = list(ten_crops(images, seen, mirror=True))
    for index, image in enumerate(images):
        np.testing.assert_array_equal([crop[index] for crop in found], pillows_crops(Image.fromarray(image), seen))
    unmirrored = list(ten_crops(images, seen, mirror=False))
    np.testing.assert_array_equal(unmirrored, found[::2])
    np.testing.assert_array_equal(unmirrored[-1], center_crop(images, seen))
    assert all(crop.flags["C_CONTIGUOUS"] for crop in found)


@pytest.mark.parametrize("mirror", [True, False])
def test_the_mean_of_the_answers_decides(prepared, mirror):
    """Against one image and one crop at a time, with a model whose answers depend on where it looks."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(20 * 20 * 3, 3))

    def model(crops):
        batches.append(len(crops))
        logits = (crops.reshape(len(crops), -1) / 255.0 - 0.3) @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)

    batches: list[int] = []
    images = PreparedImages(prepared, tiny_job(prepared).manifest, "train")
    hits = 0
    for pixels, label in zip(images.gather(np.arange(len(images))), images.labels, strict=True):
        crops = np.stack(pillows_crops(Image.fromarray(pixels), 20)[:: 1 if mirror else 2])
        hits += model(crops).mean(axis=0).argmax() == label
    batches.clear()
    assert ten_crop_accuracy(model, images, 20, mirror=mirror) == hits / len(images)
    assert sum(batches) == (10 if mirror else 5) * len(images)
    assert max(batches) <= BATCH_SIZE


def test_a_run_is_measured_with_ten_crops_where_there_is_more_than_the_centre(prepared, tmp_path):
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", "tests", tmp_path / "artifacts")
    for input_size, names in ((20, {"test/ten_crop_accuracy"}), (None, set())):
        model = ModelConfig(network="lenet5", input_size=input_size)
        job = replace(tiny_job(prepared, max_epochs=1), model=model)
        train(job, tmp_path / str(input_size))
        with tracking.open_run(None, "a run", None) as log:
            evaluate_run(tracking, job, log.run_id, tmp_path / str(input_size))
        metrics = tracking.get(log.run_id).metrics
        assert {name for name in metrics if "crop" in name} == names
        errors = ("test/calibration_error", "test/calibration_error_before")
        assert all(0 <= metrics[name] <= 1 for name in (*names, *errors, "test/accuracy"))
        assert 0.05 < metrics["val/temperature"] < 20
        pictures = {artifact.path for artifact in tracking.client.list_artifacts(log.run_id, "figures")}
        assert "figures/reliability.png" in pictures
