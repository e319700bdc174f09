import numpy as np
import pytest
from images import encode, noise, write

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.quality.image_traits import traits_of

WHITE = np.full((40, 40, 3), 255, np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Test images that differ in one trait or another, in folders below those of their classes."""
    pictures = {
        "dark.png": encode(WHITE // 8 + noise(40, 40, 1) // 64, "PNG"),
        "light.png": encode(WHITE - noise(40, 40, 2) // 64, "PNG"),
        "rough.png": encode(noise(40, 40, 3), "PNG"),
        "wide.png": encode(noise(90, 40, 4), "PNG"),
        "tall.jpg": encode(noise(40, 90, 5), "JPEG"),
        "large.png": encode(np.repeat(noise(200, 200, 6)[..., :1], 3, axis=2), "PNG"),
        "palette.gif": encode(noise(40, 40, 7), "GIF"),
    }
    folder = tmp_path_factory.mktemp("traits")
    photos = {
        f"train/{name}/{number}.png": encode(noise(30, 30, (9, number, name == "cat")), "PNG")
        for name in ("cat", "dog")
        for number in range(4)
    }
    photos |= {
        f"test/{'cat' if number % 2 else 'dog'}/{'indoors' if number < 3 else 'outdoors'}/{name}": content
        for number, (name, content) in enumerate(pictures.items())
    }
    photos |= {
        f"val/{name}": content
        for name, content in {
            "cat/x.png": encode(noise(31, 31), "PNG"),
            "dog/x.png": encode(noise(32, 32), "PNG"),
        }.items()
    }
    write(folder / "photos", photos)
    config = DataConfig(source="folder", path=folder / "photos", size=32)
    ingest(config, folder / "raw", folder / "state.json")
    prepare(config, folder / "raw", folder / "prepared", folder / "parts")
    return folder


def traits(folder, table=None):
    import pyarrow.parquet as pq

    found = traits_of(folder / "raw", folder / "prepared", "test", table or folder / "none.csv")
    rows = [row for row in pq.read_table(folder / "prepared" / "index.parquet").to_pylist() if row["split"] == "test"]
    names = [row["origin"].rpartition("/")[2] for row in rows]
    return {trait: dict(zip(names, values, strict=True)) for trait, values in found.items()}, rows


def test_images_are_described(folder):
    found, _ = traits(folder)
    assert found["class"]["dark.png"] == "dog"
    assert found["class"]["light.png"] == "cat"
    assert {name: found["shape"][name] for name in ("wide.png", "tall.jpg", "dark.png")} == {
        "wide.png": "wide",
        "tall.jpg": "upright",
        "dark.png": "about square",
    }
    assert found["colour"]["large.png"] == "grey"
    assert found["colour"]["rough.png"] == "coloured"
    assert found["form"]["palette.gif"] == "palette"
    assert found["form"]["dark.png"] == "plain"
    assert found["size"]["large.png"].endswith("to 200 px")
    assert {name.rpartition("/")[2] for name in found["folder"].values()} == {"indoors", "outdoors"}
    # The darkest and the lightest lie in the outer quarters, and so do the smoothest and the roughest.
    assert found["brightness"]["dark.png"].startswith("3")
    assert found["brightness"]["light.png"].endswith("to 254 of 255")
    assert found["sharpness"]["light.png"] != found["sharpness"]["rough.png"]


def test_columns_of_the_user_are_traits(folder, tmp_path):
    _, rows = traits(folder)
    table = tmp_path / "slices.csv"
    table.write_text(
        "origin,camera\n"
        + "".join(f"{row['origin']},{'phone' if number else 'scanner'}\n" for number, row in enumerate(rows[:-1]))
    )
    found, _ = traits(folder, table)
    assert sorted(found["camera"].values()) == ["", *["phone"] * 5, "scanner"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"path,camera\nx,phone\n", "expected a column `origin` and others, found 'path', 'camera'"),
        (b"origin\nx\n", "expected a column `origin` and others"),
        (b"origin,camera\nx,phone\nx,scanner\n", "names 'x' more than once"),
        (b"origin,camera\n\xff\xfe,phone\n", "is no CSV in UTF-8"),
    ],
)
def test_a_table_that_is_none(folder, tmp_path, content, words):
    table = tmp_path / "slices.csv"
    table.write_bytes(content)
    with pytest.raises(UserError, match=words):
        traits(folder, table)
