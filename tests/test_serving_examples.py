import base64
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from core.errors import UserError
from data.batches.shards import PreparedImages
from data.manifest import read_data_manifest
from serving.packaging.examples import choose_examples


def pixels(example):
    return np.array(Image.open(io.BytesIO(base64.b64decode(example["image"]))))


@pytest.mark.parametrize(("count", "labels"), [(1, "cat"), (2, "cat emu"), (3, "cat dog emu")])
def test_few_examples_are_of_different_classes(prepared, count, labels):
    found = choose_examples(prepared, count)
    assert [example["label"] for example in found["examples"]] == labels.split()
    assert choose_examples(prepared, count) == found


def test_more_examples_than_classes_are_spread_over_them(prepared):
    found = choose_examples(prepared, 7)["examples"]
    labels = [example["label"] for example in found]
    assert labels == sorted(labels)
    assert sorted(Counter(labels).values()) == [2, 2, 3]
    assert len({example["image"] for example in found}) == 7


def test_they_are_test_images_without_loss_and_no_more_than_there_are(prepared):
    manifest = read_data_manifest(prepared)
    images = PreparedImages(prepared, manifest, "test")
    found = choose_examples(prepared, 1000)["examples"]
    assert len(found) == len(images)
    # The order of the labels, in which images of one class keep their own.
    order = np.argsort(images.labels, kind="stable")
    for example, index in zip(found, order, strict=True):
        assert example["label"] == manifest.classes[images.labels[index]]
        assert np.array_equal(pixels(example), images.gather(np.array([index]))[0])


def test_nothing_prepared_is_told(tmp_path):
    with pytest.raises(UserError, match="prepare the images with `convoy data prepare`"):
        choose_examples(tmp_path, 3)
