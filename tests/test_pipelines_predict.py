"""`convoy predict` with a model that names the strongest colour of an image."""

import csv
import json

import pytest
from test_serving_classifier import make_model, picture

from core.errors import UserError
from pipelines.commands.predict import AHEAD, BATCH, check_table, find_images, predict_files

COLORS = {"red": (240, 20, 10), "green": (10, 240, 20), "blue": (10, 20, 240)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def photos(tmp_path):
    """More images than are decoded ahead, one of them damaged."""
    folder = tmp_path / "photos"
    for index in range(BATCH * (AHEAD + 1) + 5):
        color = list(COLORS)[index % 3]
        path = folder / color / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(COLORS[color]))
    (folder / "blue" / "100.PNG").write_bytes(b"junk")
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_folder_becomes_a_table_in_the_order_of_names(model, photos, tmp_path, capsys):
    table = tmp_path / "answers.csv"
    files = find_images([photos])
    assert predict_files(model, files, 3, as_json=False, table=table) == 1
    assert capsys.readouterr().out == f"102 images: {table}, 1 of them no usable image (column `error`)\n"
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [str(path) for path in sorted(photos.glob("*/*"))]
    (damaged,) = [row for row in rows if row["error"]]
    assert (damaged["file"], damaged["error"]) == (str(photos / "blue" / "100.PNG"), "not an image")
    assert all(row["label"] == row["file"].split("/")[-2] for row in rows if row is not damaged)
    assert all(0.9 < float(row["probability"]) <= 1 for row in rows if row is not damaged)


def test_files_and_folders_are_answered_as_json(model, photos, capsys):
    missing = photos / "missing.png"
    assert predict_files(model, find_images([missing, photos / "red"]), 1, as_json=True) == 1
    first, *others = json.loads(capsys.readouterr().out)
    assert first == {"file": str(missing), "error": "No such file or directory"}
    assert {answer["predictions"][0]["label"] for answer in others} == {"red"}


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no images"):
        find_images([tmp_path])


def test_a_table_that_cannot_be_written_is_told_before_anything_else(tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        check_table(tmp_path / "nowhere" / "a.csv")
    with pytest.raises(UserError, match="this is a folder"):
        check_table(tmp_path)
