"""Deciding on the quality page, in a real browser."""

import csv
import hashlib
import io

import pytest
from images import encode, noise, write
from PIL import Image
from test_serving_page import CHROMIUM, FLAGS

from core.errors import UserError
from data.config import DataConfig
from data.ingest.stage import ingest
from data.preparing.stage import prepare
from data.quality.decisions import read_decisions
from data.quality.page import quality_page

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

NAMES = ("a, b", 'c "d"')
"""Classes whose names need quotes in CSV."""


def png(seed):
    return encode(Image.fromarray(noise(12, 12, seed)).resize((48, 48), Image.Resampling.BICUBIC), "PNG")


FILES = {f"{split}/{name}/{index}.png": png((number, index, ord(name[0])))
         for number, split in enumerate(("train", "val", "test")) for name in NAMES for index in range(3)}  # fmt: skip
CONFLICT = {f"train/{NAMES[0]}/x.png": png(99), f"train/{NAMES[1]}/y.png": png(99)}
STRIP = {f"train/{NAMES[0]}/strip.png": encode(noise(60, 10, 7), "PNG")}


@pytest.fixture
def html(tmp_path):
    """A page with a conflict and an odd image."""
    config = DataConfig(source="folder", path=write(tmp_path / "source", FILES | CONFLICT | STRIP), size=8)
    ingest(config, tmp_path / "raw", tmp_path / "state.json")
    with pytest.raises(UserError):
        prepare(config, tmp_path / "raw", tmp_path / "prepared", tmp_path / "parts")
    path = tmp_path / "quality.html"
    path.write_text(quality_page(tmp_path / "prepared"), encoding="utf-8")
    return path


@pytest.fixture
def tab(html):
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install your system's package of Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(html.as_uri())
        yield page
        assert complaints == []
        browser.close()


def tick(place, name):
    figure = place.locator("figure").filter(has_text=name)
    figure.get_by_role("checkbox").check()
    return figure


EXPECTED = [
    (hashlib.sha256(CONFLICT[f"train/{NAMES[1]}/y.png"]).hexdigest(), "keep", f"train/{NAMES[1]}/y.png"),
    (hashlib.sha256(STRIP[f"train/{NAMES[0]}/strip.png"]).hexdigest(), NAMES[1], ""),
]


def test_what_was_ticked_can_be_downloaded(tab, tmp_path):
    playwright.expect(tab.locator("#decisions")).to_be_hidden()
    tick(tab, "y.png")
    tick(tab, "strip.png").get_by_role("combobox").select_option(NAMES[1])
    tick(tab, "x.png").get_by_role("checkbox").uncheck()
    playwright.expect(tab.get_by_role("status")).to_contain_text("2 ticked. Append the lines to data/decisions.csv")
    with tab.expect_download() as download:
        tab.get_by_role("button", name="Download the lines").click()
    assert download.value.suggested_filename == "decisions.csv"
    download.value.save_as(tmp_path / "decisions.csv")
    found = [(one.sha256, one.what, one.image) for one in read_decisions(tmp_path / "decisions.csv")]
    assert sorted(found) == sorted(EXPECTED)


def test_in_a_frame_without_downloads_the_lines_are_shown(tab, html):
    """As MLflow shows the page."""
    tab.set_content('<iframe sandbox="allow-scripts" width="900" height="900"></iframe>')
    tab.locator("iframe").evaluate("(frame, page) => { frame.srcdoc = page }", html.read_text(encoding="utf-8"))
    frame = tab.frame_locator("iframe")
    tick(frame, "y.png")
    tick(frame, "strip.png").get_by_role("combobox").select_option(NAMES[1])
    playwright.expect(frame.get_by_role("button", name="Download the lines")).to_be_hidden()
    header, *rows = csv.reader(io.StringIO(frame.get_by_label("lines to copy").input_value()))
    assert header == ["sha256", "decision", "image"]
    assert sorted((*row, "")[:3] for row in rows) == sorted(EXPECTED)
