import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import draw_classes
from PIL import Image

from data.config import DataConfig
from data.errors import UserError
from data.ingest import ingest
from data.manifest import read_manifest
from data.prepare import prepare
from data.report import data_report
from data.sample import first_test_image
from data.shards import PreparedImages, verify
from data.sources import SPLITS

SIZE = 16


@pytest.fixture
def photos(tmp_path):
    return draw_classes(tmp_path / "photos", ["cat", "dog", "emu"], 30, size=24)


def run(photos, name="one", **options):
    folder = photos.parent / name
    config = DataConfig(source="folder", path=photos, size=SIZE, **options)
    ingest(config, folder / "raw", folder / "state.json")
    return prepare(config, folder / "raw", folder / "prepared", folder / "parts"), folder


def digests(prepared):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prepared.iterdir()}


def test_every_image_is_there_once_with_its_label(photos):
    manifest, folder = run(photos)
    index = pq.read_table(folder / "prepared" / "index.parquet").to_pylist()
    assert manifest.num_images == len(index) == 90
    assert manifest.classes == ("cat", "dog", "emu")
    for split in SPLITS:
        images, rows = PreparedImages(folder / "prepared", manifest, split), [r for r in index if r["split"] == split]
        assert [manifest.classes[label] for label in images.labels] == [row["label"] for row in rows]
        pixels = images.gather(np.arange(len(images)))
        assert pixels.shape == (len(rows), SIZE, SIZE, 3)
        for image, row in zip(pixels, rows, strict=True):
            with Image.open(photos / row["origin"]) as original:
                # square, so that resizing is all there is to do
                plain = original.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
            assert np.array_equal(image, np.asarray(plain))


def test_colour_statistics_are_those_of_the_training_pixels(photos):
    manifest, folder = run(photos)
    images = PreparedImages(folder / "prepared", manifest, "train")
    pixels = images.gather(np.arange(len(images))).reshape(-1, 3) / 255
    np.testing.assert_allclose(manifest.color.mean, pixels.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(manifest.color.std, pixels.std(axis=0), atol=1e-5)
    vectors, values = np.array(manifest.color.eigenvectors), np.array(manifest.color.eigenvalues)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, np.cov(pixels.T, bias=True), atol=1e-4)


def test_equal_images_give_equal_bytes(photos):
    (_, one), (_, two) = run(photos), run(photos, "two")
    assert digests(one / "prepared") == digests(two / "prepared")


def test_adding_images_moves_no_others(photos):
    _, folder = run(photos)
    before = {row["sha256"]: row["split"] for row in pq.read_table(folder / "prepared" / "index.parquet").to_pylist()}
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(photos / "cat" / f"new-{number}.png")
    run(photos)
    after = {row["sha256"]: row["split"] for row in pq.read_table(folder / "prepared" / "index.parquet").to_pylist()}
    assert len(after) == 110
    assert before.items() <= after.items()


def test_finished_parts_are_not_decoded_again(photos, monkeypatch):
    _, folder = run(photos)
    before = digests(folder / "prepared")
    monkeypatch.setattr("data.part.decode", lambda *_: pytest.fail("decoded again"))
    run(photos)
    assert digests(folder / "prepared") == before


def test_an_altered_shard_is_noticed_and_made_again(photos):
    manifest, folder = run(photos)
    before = digests(folder / "prepared")
    path = folder / "prepared" / manifest.shards[0].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{path.name} .*altered"):
        verify(folder / "prepared", manifest)
    path.write_bytes(content[:-100])
    with pytest.raises(UserError, match="damaged"):
        PreparedImages(folder / "prepared", manifest, manifest.shards[0].split)
    run(photos)
    assert digests(folder / "prepared") == before


def test_an_interruption_leaves_no_manifest(photos, monkeypatch):
    monkeypatch.setattr("data.part.decode", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(photos)
    with pytest.raises(UserError, match=r"manifest.json is missing.*convoy data prepare"):
        read_manifest(photos.parent / "one" / "prepared")
    monkeypatch.undo()
    manifest, _ = run(photos)
    assert manifest.num_images == 90


def test_rejected_images_are_listed(photos):
    (photos / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    (photos / "dog" / "cut.png").write_bytes((photos / "dog" / "0.png").read_bytes()[:-40])
    manifest, folder = run(photos)
    assert {image.path for image in manifest.rejected} == {"cat/notes.txt", "dog/cut.png"}
    report = json.loads(json.dumps(data_report(folder / "prepared")))
    assert report.keys() >= {"num_images", "num_rejected", "rejected", "splits", "classes"}
    assert (report["num_images"], report["num_rejected"], sum(report["splits"].values())) == (90, 2, 90)
    assert report["rejected"][0].keys() == {"path", "reason"}


@pytest.mark.parametrize("usable", [0, 1])
def test_a_class_with_too_few_usable_images(photos, usable):
    (photos / "fox").mkdir()
    (photos / "fox" / "broken.png").write_bytes(b"broken")
    for number in range(usable):
        Image.new("RGB", (20, 20)).save(photos / "fox" / f"{number}.png")
    with pytest.raises(UserError, match="'fox'"):
        run(photos)


def test_images_that_are_all_broken(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "photos" / name / f"{number}.png").write_bytes(b"broken")
    with pytest.raises(UserError):
        run(tmp_path / "photos")


def test_a_sample_is_an_original_and_what_was_made_of_it(photos):
    manifest, folder = run(photos)
    sample = first_test_image(folder / "raw", folder / "prepared", 12)
    assert sample.image == (photos / sample.origin).read_bytes()
    (first,) = PreparedImages(folder / "prepared", manifest, "test").gather(np.array([0]))
    assert np.array_equal(sample.prepared, first[2:14, 2:14])
