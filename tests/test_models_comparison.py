import re

import numpy as np
import pytest
from test_models_gate import strongest_color

from core.errors import UserError
from data.batches.shards import PreparedImages
from data.manifest import read_data_manifest
from models.exported.predictor import OnnxPredictor, read_model_manifest
from models.judging.compare import compare_groups, holm
from models.judging.comparison import compare_models
from models.judging.comparison_page import comparison_page
from models.judging.evaluate import predict
from models.judging.measured import measure
from models.tracking.registry import write_manifest


@pytest.fixture(scope="module")
def data(prepared):
    return read_data_manifest(prepared)


@pytest.fixture(scope="module")
def measured(prepared, data, tmp_path_factory):
    """Models that mix up two classes, or know others; one that is right, and sees images of another size."""
    folder = tmp_path_factory.mktemp("models")

    def make(name, classes=data.classes, size=24, **options):
        model = strongest_color(folder / name, data.model_copy(update={"classes": classes}), size=size, **options)
        manifest = read_model_manifest(model).model_copy(update={"data_version": "today"})
        write_manifest(model, manifest)
        return measure(model, prepared.parent / "raw", prepared)

    return {
        "1": make("1", version="1", channels=(1, 0, 2)),
        "2": make("2", version="2", channels=(0, 2, 1)),
        "larger": make("larger", version="3", size=48, crop=40),
        "others": make("others", version="4", classes=("fox", "dog", "emu")),
        "strangers": make("strangers", version="5", classes=("fox", "hen", "emu")),
    }


def compared(measured, prepared, champion="1", challenger="2", data_version="today"):
    return compare_models(measured[champion], measured[challenger], prepared, data_version, 0.02)


def test_broken_and_fixed_are_what_a_direct_count_finds(measured, prepared, data):
    found = compared(measured, prepared)
    images = PreparedImages(prepared, data, "test")
    models = (OnnxPredictor(measured[name].predictor.folder) for name in "12")
    before, after = (predict(model, images, data.classes, 20).hits for model in models)
    broken, fixed = np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)
    assert {one.index for one in found.broken} == set(broken.tolist())
    assert {one.index for one in found.fixed} == set(fixed.tolist())
    assert (found.overall.lost, found.overall.won) == (len(broken), len(fixed))
    assert len(broken) > 2
    # Red, green and blue: the second model takes dogs for emus.
    assert {(one.label, one.champion.label, one.challenger.label) for one in found.broken} == {("emu", "emu", "dog")}
    sureness = [one.challenger.probability for one in found.broken]
    assert sureness == sorted(sureness, reverse=True)
    assert all(one.origin.startswith("emu") for one in found.broken)


def test_each_class_and_each_model_has_its_figures(measured, prepared):
    found = compared(measured, prepared)
    assert [one.name for one in found.by_class] == ["emu", "dog", "cat"]
    assert [one.difference for one in found.by_class] == [-1, 0, 1]
    assert sum(one.num_images for one in found.by_class) == found.overall.num_images
    # All of five images lost: McNemar's mid-p is 2**-5, and of two classes that is twice as likely by chance.
    assert (found.by_class[0].num_images, found.by_class[0].is_significant) == (5, False)
    assert found.champion.low < found.champion.accuracy < found.champion.high
    assert found.champion.seconds.keys() == {1, 8}
    assert found.champion.num_bytes == (measured["1"].predictor.folder / "model.onnx").stat().st_size
    assert (found.notes, found.champion.int8_bytes) == ((), None)


def test_a_model_of_another_size_is_compared_on_the_same_images(measured, prepared):
    found = compared(measured, prepared, challenger="larger")
    assert found.overall.challenger_accuracy == 1
    assert (found.broken, found.challenger.input_size) == ((), 40)


def test_models_of_other_classes_are_compared_on_those_that_they_share(measured, prepared, data):
    found = compared(measured, prepared, challenger="others")
    assert found.classes == ("dog", "emu")
    assert found.overall.num_images == sum(data.splits["test"][name] for name in found.classes)
    # Between dog and emu alone, the first model is right as well.
    assert found.overall.champion_accuracy == found.overall.challenger_accuracy == 1
    assert [note.partition(":")[0] for note in found.notes] == ["v4 knows other classes (has 'fox'; lacks 'cat')"]
    with pytest.raises(UserError, match="v1 and v5 of classifier share 1 of the classes that are prepared here"):
        compared(measured, prepared, challenger="strangers")


def test_who_may_have_seen_the_test_images_is_named(measured, prepared):
    notes = compared(measured, prepared, data_version="yesterday").notes
    assert [note.partition(" on data ")[0] for note in notes] == ["v1 was trained", "v2 was trained"]


def test_the_page_holds_all_that_it_shows(measured, prepared):
    found = compared(measured, prepared)
    page = comparison_page(found, measured["1"], measured["2"], prepared)
    assert page.index("Newly broken: ") < page.index("Fixed: ") < page.index("Both models")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert page.count('alt="">image<') == min(24, len(found.broken)) + min(12, len(found.fixed))
    assert page.count('alt="">v1<') == min(6, len(found.broken)) + min(6, len(found.fixed))
    assert all(one.origin in page for one in found.broken[:24])


def test_names_of_classes_are_no_html(measured, prepared):
    found = compared(measured, prepared)
    named = found.by_class[0].model_copy(update={"name": "<script>alert(1)</script>"})
    page = comparison_page(found.model_copy(update={"by_class": (named,)}), measured["1"], measured["2"], prepared)
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page


def test_holm_by_hand():
    # Four tests, sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_one_class_among_many_differs_by_chance():
    """Five images lost of one class: alone unlikely, among fifty classes not."""
    champion, challenger = np.ones(1000, bool), np.ones(1000, bool)
    challenger[:5] = False
    groups = {str(number): np.arange(1000) // 20 == number for number in range(50)}
    assert compare_groups(champion, challenger, {"0": groups["0"], "none": np.zeros(1000, bool)})[0].p_value < 0.05
    assert not any(one.is_significant for one in compare_groups(champion, challenger, groups))
