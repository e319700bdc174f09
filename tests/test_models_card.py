import json

import numpy as np
import pytest
import yaml
from test_models_gate import NONE, predictions

from data.images.decode import Preprocessing
from models.config import GateConfig
from models.exported.export import make_golden
from models.exported.manifest import ModelManifest
from models.judging.card import Card, cut, gaps, read_said
from models.judging.gate import judge_challenger
from models.judging.slices import find_slices

SPEC = Preprocessing(size=24, crop=20, max_pixels=1_000_000)


@pytest.fixture
def card():
    manifest = ModelManifest(
        name="classifier",
        version="3",
        network="lenet5",
        classes=("a|b", "<i>dog</i>"),
        preprocessing=SPEC,
        preprocessing_hash=SPEC.hash,
        run_id="f" * 32,
        data_version="d" * 32,
        git_commit=None,
        metrics={},
        onnx_sha256="0",
        golden=make_golden(np.zeros((20, 20, 3), np.uint8), np.ones(2, np.float32)),
    )
    answers = predictions([90, 60])
    slices = find_slices(
        answers.hits, {"light": ["dark", "bright"] * 100, "class": ["a|b"] * 100 + ["<i>dog</i>"] * 100}
    )
    return Card(
        manifest=manifest,
        said={"Intended use": "Sorting.\n\nNot <script>."},
        params={"training.seed": "0", "x": "1"},
        metrics={"test/accuracy": 0.75, "val/accuracy": 0.5},
        class_accuracy={"a|b": 0.9, "<i>dog</i>": 0.6},
        source="folder",
        data=None,
        verdict=judge_challenger(answers, 0, NONE, GateConfig(), slices),
        comparison=None,
        slices=slices,
    )


def test_the_front_matter_is_what_hugging_face_reads(card):
    _, front, _ = card.as_markdown().split("---\n", 2)
    fields = yaml.safe_load(front)
    assert (fields["pipeline_tag"], fields["license_name"]) == ("image-classification", "unknown")
    (result,) = fields["model-index"][0]["results"]
    assert result["dataset"] == {"name": "folder", "type": "folder", "split": "test", "revision": "d" * 32}
    assert result["metrics"] == [{"type": "accuracy", "name": "test/accuracy", "value": 0.75}]


def test_the_card_says_what_is_known_and_what_is_not(card):
    text = card.as_note()
    assert "## Intended use\n\nSorting." in text
    assert "## Limits\n\nNobody has said anything here yet" in text
    assert "- class &lt;i>dog&lt;/i>: accuracy 0.6000 of 100 images" in text
    assert "| a\\|b | 90.0 % |" in text
    assert "| training.seed | 0 |" in text
    assert "| x | 1 |" not in text
    assert "- passed: test/accuracy 0.75 >= 0" in text


def test_the_page_escapes_what_people_and_folders_say(card):
    page = card.as_html()
    assert "Not &lt;script&gt;." in page
    assert "<script" not in page
    assert "<i>dog" not in page


def test_a_card_is_kept_as_json_too(card):
    assert json.loads(card.model_dump_json())["said"]["Intended use"].startswith("Sorting")


def test_a_long_card_is_cut_at_a_line(card):
    text = cut(card.as_note() + "| line |\n" * 2000, 8000)
    assert 7900 < len(text) <= 8000
    assert text.endswith("| line |\n\nThe whole card is `model-card.html` among the artifacts.\n")
    assert cut("short", 8000) == "short"


def test_what_people_write_is_read_by_heading(tmp_path):
    path = tmp_path / "card.md"
    assert gaps(read_said(path)) == ["Intended use", "Limits", "Licence of the data"]
    path.write_text(
        "# Card\n\n## Intended use\n\nSorting.\n\n## Limits\n<!-- where it should not be used -->\n\n## Owner\nAnn\n"
    )
    assert read_said(path)["Intended use"] == "Sorting."
    assert gaps(read_said(path)) == ["Limits", "Licence of the data"]
