import argparse
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from benchmarks import feed, photos, predict, prepare, train
from benchmarks.__main__ import PAGE, with_table
from benchmarks.made_photos import make_photo
from benchmarks.report import Report, alternate, rate
from core.errors import UserError


def test_a_report_has_the_one_form_of_all():
    report = Report("x")
    report.add("speed", 3.0, "images/s", goal=2, reference="peer")
    report.add("size", 1.0, "MB")
    content = json.loads(json.dumps(report.as_json()))
    assert content.keys() == {"benchmark", "machine", "versions", "date", "rows"}
    assert [row["met"] for row in content["rows"]] == [True, None]
    assert content["rows"][0].keys() == {"metric", "value", "unit", "goal", "met", "reference"}
    assert "| speed | 3 images/s | 2 | yes | peer |" in report.as_markdown()


def test_candidates_alternate_and_the_first_round_is_not_counted():
    figures = {"a": iter([9.0, 1.0, 3.0, 2.0]), "b": iter([0.0, 4.0, 4.0, 5.0])}
    order = []
    candidates = {name: lambda name=name: order.append(name) or next(figures[name]) for name in figures}
    assert alternate(candidates, rounds=3) == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_rate_counts_what_the_work_says():
    assert rate(lambda: 10) > 1000


def test_a_made_photo_costs_about_as_much_as_a_real_one():
    photo = make_photo(np.random.default_rng(0))
    assert 10_000 < len(photo) < 60_000
    with Image.open(io.BytesIO(photo)) as image:
        assert image.size == (341, 256)


def test_a_result_goes_into_its_place_in_the_page():
    report = Report("x")
    report.add("speed", 3.0, "images/s")
    page = with_table("a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n", report.as_json())
    assert page.startswith("a\n<!-- begin x -->\n")
    assert "| speed | 3 images/s |  |  |  |\n<!-- end x -->\nb\n" in page
    assert "old" not in page
    with pytest.raises(ValueError, match="no place for x"):
        with_table("", report.as_json())


def test_the_page_has_a_place_for_every_result():
    page = PAGE.read_text(encoding="utf-8")
    for path in (PAGE.parent / "results").glob("*.json"):
        assert with_table(page, json.loads(path.read_text(encoding="utf-8"))) == page


@pytest.mark.slow
@pytest.mark.parametrize("case", [train.ALEXNET, train.LENET], ids=["AlexNet", "LeNet"])
def test_training_is_measured(case, tmp_path, monkeypatch):
    small = replace(case, num_steps=2, batch_size=8, stored=72, seen=64)
    for name in ("ALEXNET", "LENET"):
        monkeypatch.setattr(train, name, small)
    report = train.measure(argparse.Namespace(folder=None, rounds=1))
    assert all(row.value > 0 for row in report.rows)


def test_photographs_must_be_named():
    with pytest.raises(UserError, match="say --folder DIR"):
        photos.measure(argparse.Namespace(folder=None, finetune=False))


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", [feed, predict, prepare])
def test_each_benchmark_runs(benchmark, monkeypatch):
    monkeypatch.setattr(prepare, "NUM_PARTS", 1)
    report = benchmark.measure(argparse.Namespace(folder=None, images=200, rounds=1))
    assert all(row.value > 0 for row in report.rows)
