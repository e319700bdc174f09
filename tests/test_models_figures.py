import io
import itertools

import numpy as np
import pytest
from PIL import Image

from models.tracking.figures import (
    augmentation_preview,
    confusion_matrix,
    learning_curves,
    reliability_diagram,
    worst_errors,
)

LONG_NAMES = [
    "aeroplane",
    "motor car",
    "a name that never ends and says little",
    "Константинополь",
    "$5 bill$",
    "船と猫",
    " ",
]


def render(figure):
    """Pixels of the PNG, uint8 [H, W, 3]: drawing must not warn of missing letters or of too little room."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))


def texts(figure):
    return [text for axes in figure.axes for text in axes.texts if text.get_text()]


def labels(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def boxes(artists):
    return [artist.get_window_extent() for artist in artists]


def overlapping(extents):
    return [(a, b) for a, b in itertools.combinations(extents, 2) if a.shrunk(0.98, 0.9).overlaps(b.shrunk(0.98, 0.9))]


def history(num_epochs):
    epochs = range(1, num_epochs + 1)
    return {
        "train/loss": [(epoch, 2.3 / epoch) for epoch in epochs],
        "val/loss": [(epoch, 2.3 / epoch + 0.1 * epoch) for epoch in epochs],
        "train/accuracy": [(epoch, 1 - 0.9 / epoch) for epoch in epochs],
        "val/accuracy": [(epoch, 0.9 - 0.8 / epoch) for epoch in epochs],
        "lr": [(epoch, 0.1) for epoch in epochs],
    }


@pytest.mark.parametrize("num_epochs", [1, 3, 90])
def test_learning_curves(num_epochs):
    figure = learning_curves(history(num_epochs))
    loss, accuracy = figure.axes
    assert [line.get_label() for line in loss.lines] == ["training", "validation"]
    np.testing.assert_allclose(accuracy.lines[1].get_ydata()[-1], 0.9 - 0.8 / num_epochs)
    assert len(loss.lines[0].get_xdata()) == num_epochs
    render(figure)
    assert all(float(tick).is_integer() for tick in loss.get_xticks())


def test_learning_curves_name_the_best_epoch():
    figure = learning_curves(history(20))
    # 2.3 / e + 0.1 e is least at e = sqrt(23) = 4.8, and 0.96 there at 5: 0.46 + 0.5.
    assert figure.axes[0].get_title(loc="right") == "validation: lowest 0.96 in epoch 5"
    assert figure.axes[1].get_title(loc="right") == "validation: best 86.0 % in epoch 20"


def test_learning_curves_with_gaps():
    points = [(2, 1.0), (1, 2.0), (2, 0.5), (3, float("nan")), (4, float("inf"))]
    loss, accuracy = (figure := learning_curves({"train/loss": points})).axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2], [2, 0.5]]
    assert [text.get_text() for text in accuracy.texts] == ["nothing recorded"]
    render(figure)


def counts_of(num_classes):
    random = np.random.default_rng(0)
    counts = random.poisson(1, (num_classes, num_classes))
    counts[np.arange(num_classes), np.arange(num_classes)] = random.poisson(12_345, num_classes)
    return counts.astype(np.int64)


@pytest.mark.parametrize("num_classes", [2, 10, 25, 100])
def test_confusion_matrix_names_rows_and_columns_without_overlap(num_classes):
    counts = counts_of(num_classes)
    figure = confusion_matrix(counts, [f"class name {index}" for index in range(num_classes)])
    picture = render(figure)
    axes = figure.axes[0]
    assert labels(axes) == [f"class name {index}" for index in range(num_classes)]
    assert max(picture.shape) < 2500
    assert not overlapping(boxes(axes.get_xticklabels()))
    assert not overlapping(boxes(axes.get_yticklabels()))
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    expected = {(j, i): str(n) for (i, j), n in np.ndenumerate(counts) if n} if num_classes <= 25 else {}
    assert cells == expected
    assert not overlapping(boxes(axes.texts))


def test_confusion_matrix_has_true_rows_and_predicted_columns():
    figure = confusion_matrix(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
    axes = figure.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert labels(axes) == ["cat", "dog"]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25], [0, 1]])
    assert axes.get_title(loc="left") == "7 of 8 images right (87.5 %)"


def test_confusion_matrix_of_difficult_names():
    figure = confusion_matrix(counts_of(7), LONG_NAMES)
    render(figure)
    *plain, japanese, empty = labels(figure.axes[0])
    assert plain == ["aeroplane", "motor car", "a name that never ends…", "Константинополь", "$5 bill$"]
    assert japanese in ("船と猫", "class 5")  # with and without a font that has the letters
    assert empty == "class 6"


def test_confusion_matrix_of_nothing_and_of_a_thousand_classes():
    render(confusion_matrix(np.zeros((3, 3), dtype=np.int64), ["a", "b", "c"]))
    figure = confusion_matrix(np.eye(1000, dtype=np.int64), [str(index) for index in range(1000)])
    assert max(render(figure).shape) < 2500


def test_a_reliability_diagram_names_its_curves_and_errors():
    figure = reliability_diagram({"before": ([0.5, 0.9], [0.4, 0.6], 0.2), "after": ([0.6], [0.62], 0.02)})
    render(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before: error 20.0 %", "after: error 2.0 %"]
    assert axes.lines[1].get_xydata().tolist() == [[0.5, 0.4], [0.9, 0.6]]


@pytest.mark.parametrize("num_images", [1, 2, 5, 24])
def test_worst_errors(num_images):
    images = np.zeros((num_images, 32, 32, 3), dtype=np.uint8)
    truths = np.arange(num_images) % 7
    figure = worst_errors(images, truths, (truths + 2) % 7, np.linspace(0.999, 0.4, num_images), LONG_NAMES)
    picture = render(figure)
    assert len(figure.axes[0].images) == num_images
    captions = [text.get_text() for text in texts(figure)]
    assert captions[1:3] == ["true: aeroplane", "taken for: a name that ne…, 100 %"]
    extents = boxes(texts(figure))
    assert not overlapping(extents)
    assert all(box.x0 >= 0 and box.x1 <= picture.shape[1] and box.y0 >= 0 for box in extents)


def test_no_errors():
    none = np.zeros(0, dtype=np.int64)
    figure = worst_errors(np.zeros((0, 8, 8, 3), dtype=np.uint8), none, none, np.zeros(0), ["a"])
    render(figure)
    assert [text.get_text() for text in figure.texts] == ["No errors on these images"]


@pytest.mark.parametrize(("num_images", "num_variants"), [(1, 1), (4, 7)])
def test_augmentation_preview(num_images, num_variants):
    originals = np.full((num_images, 36, 36, 3), (200, 0, 0), dtype=np.uint8)
    augmented = np.full((num_images, num_variants, 32, 32, 3), (0, 200, 0), dtype=np.uint8)
    figure = augmentation_preview(originals, augmented)
    picture = render(figure)
    shown = figure.axes[0].images
    assert len(shown) == num_images * (1 + num_variants)
    assert not overlapping(boxes(shown))
    assert not overlapping(boxes(texts(figure)))
    assert all(box.x1 <= picture.shape[1] for box in boxes(texts(figure)))
    red, green = ((picture == color).all(axis=2).sum() for color in ((200, 0, 0), (0, 200, 0)))
    assert green == pytest.approx(num_variants * red, rel=0.05)
