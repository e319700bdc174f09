"""The page in a real browser, before a real endpoint."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_serving_classifier import BLUE, CERTAINTY, GREY, make_model, picture

from serving.config import ServingConfig
from serving.endpoint.answers import Examples
from serving.endpoint.auth import new_token
from serving.packaging.bento import build_bento
from serving.packaging.local_endpoint import Endpoint

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = {"width": 375, "height": 667}


@pytest.fixture(scope="module")
def token() -> tuple[str, str]:
    return new_token()


@pytest.fixture(scope="module")
def urls(tmp_path_factory, token) -> Iterator[dict[str, str]]:
    """An endpoint for everyone, one that asks for a token, and one with examples."""
    store = tmp_path_factory.mktemp("store")
    model = make_model(tmp_path_factory.mktemp("model"), certainty=CERTAINTY)
    bento = build_bento(model, ServingConfig(max_body_mb=1), store)
    pictures = {"red": picture((240, 20, 10), side=32), "blue": picture((10, 20, 240), side=32)}
    examples: Examples = {
        "examples": [{"label": name, "image": base64.b64encode(image).decode()} for name, image in pictures.items()]
    }
    shown = build_bento(model, ServingConfig(), store, examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVOY_TOKENS", token[1])
        with (
            Endpoint(bento) as anyone,
            Endpoint(bento, is_public=True) as closed,
            Endpoint(shown, is_public=True) as examples_closed,
        ):
            yield {"open": anyone.url, "closed": closed.url, "examples": examples_closed.url}


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install your system's package of Chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A fresh tab; whatever it has to complain of fails the test, unless the test says what it expects."""
    context = browser.new_context(**getattr(request, "param", {}))
    context.set_default_timeout(10_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.complaints = complaints
    yield page
    context.close()
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def png(content: bytes, name: str = "a.png") -> dict[str, object]:
    return {"name": name, "mimeType": "image/png", "buffer": content}


def expect_answer(page, label: str, wanted: str = "") -> None:
    playwright.expect(page.get_by_role("status")).to_contain_text(f"{label}, 97.8% in ")
    playwright.expect(page.locator("#evidence-note")).to_contain_text(wanted or f"speaks for {label}")


def test_a_chosen_image_is_classified_and_explained(page, urls):
    page.goto(urls["open"])
    playwright.expect(page.get_by_role("heading", level=1)).to_have_text("Strongest Color")
    playwright.expect(page.locator("#model-line")).to_contain_text("Version 3")
    page.get_by_label("Choose images").set_input_files(png(BLUE))
    expect_answer(page, "blue")
    bars = page.get_by_role("list", name="Likeliest classes").get_by_role("button")
    playwright.expect(bars).to_have_count(3)
    playwright.expect(bars.first).to_have_attribute("aria-pressed", "true")
    playwright.expect(bars.first).to_contain_text("97.8%")
    assert page.locator("#image").evaluate("image => image.naturalWidth") == 20
    page.get_by_label("Show the evidence").uncheck()
    playwright.expect(page.locator("#overlay")).to_be_hidden()
    page.get_by_text("About this model").click()
    playwright.expect(page.locator("#facts")).to_contain_text("data-1")
    assert page.complaints == []


def test_an_uncertain_answer_is_shown_as_one(page, urls):
    page.goto(urls["open"])
    page.get_by_label("Choose images").set_input_files(png(GREY))
    playwright.expect(page.get_by_role("status")).to_contain_text("Uncertain: it may be something else")
    page.get_by_label("Choose images").set_input_files(png(BLUE))
    expect_answer(page, "blue")
    playwright.expect(page.get_by_role("status")).not_to_contain_text("Uncertain")


def test_it_works_by_keyboard_alone(page, urls):
    # Asked for only when the key is pressed, the chooser's interception can come too late.
    page.on("filechooser", lambda _: None)
    page.goto(urls["open"])
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files(png(BLUE))
    expect_answer(page, "blue")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    playwright.expect(page.get_by_label("Show the evidence")).not_to_be_checked()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#evidence-note")).to_contain_text("for green")
    playwright.expect(page.locator("[aria-pressed=true]")).to_contain_text("green")


GIVE = """([kind, name, data, content]) => {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const given = new DataTransfer();
    given.items.add(new File([bytes], "a.png", { type: "image/png" }));
    document.body.dispatchEvent(new window[kind](name, { bubbles: true, [data]: given }));
}"""


@pytest.mark.parametrize("event", [("ClipboardEvent", "paste", "clipboardData"), ("DragEvent", "drop", "dataTransfer")])
def test_an_image_can_be_pasted_or_dropped(page, urls, event):
    page.goto(urls["open"])
    page.evaluate(GIVE, [*event, base64.b64encode(BLUE).decode()])
    expect_answer(page, "blue")


NUM_LINES = """(selectors) => selectors.map((selector) => {
    const line = document.querySelector(selector);
    line.textContent = "a name of many words ".repeat(9);
    return Math.round(line.clientHeight / parseFloat(getComputedStyle(line).lineHeight));
})"""
"""Lines that a long text takes there."""


@pytest.mark.parametrize("page", [{"viewport": PHONE, "has_touch": True, "is_mobile": True}], indirect=True)
def test_it_fits_a_phone(page, urls):
    page.goto(urls["open"])
    page.get_by_label("Choose images").set_input_files(png(picture((10, 20, 240), side=90)))
    expect_answer(page, "blue")
    camera = page.get_by_label("Take a photo")
    playwright.expect(camera).to_have_attribute("capture", "environment")
    playwright.expect(page.locator(".camera")).to_be_visible()
    assert page.evaluate(NUM_LINES, ["h1", ".best"]) == [1, 1]
    page.get_by_text("About this model").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    image, overlay = page.locator("#image").bounding_box(), page.locator("#overlay").bounding_box()
    # The network sees 8 of the 10 pixels that the image is resized to.
    assert overlay["width"] == pytest.approx(0.8 * min(image["width"], image["height"]), abs=1)
    assert overlay["x"] + overlay["width"] / 2 == pytest.approx(image["x"] + image["width"] / 2, abs=1)


def test_several_images_are_answered_and_each_can_be_looked_at(page, urls):
    page.goto(urls["open"])
    red = picture((240, 20, 10), side=90)
    page.get_by_label("Choose images").set_input_files([png(BLUE), png(red, "b.png"), png(b"junk", "c.png")])
    expect_answer(page, "blue")
    chosen = page.get_by_role("list", name="Chosen images").get_by_role("button")
    playwright.expect(chosen).to_contain_text(["blue, 97.8%", "red, 97.8%", "No answer"])
    # Each is drawn at the largest multiple of its size up to 320 pixels.
    assert page.locator("#image").bounding_box()["width"] == 16 * 20
    chosen.nth(1).click()
    expect_answer(page, "red")
    assert page.locator("#image").bounding_box()["width"] == 3 * 90
    playwright.expect(chosen.nth(1)).to_have_attribute("aria-pressed", "true")
    chosen.nth(2).click()
    playwright.expect(page.get_by_role("alert")).to_have_text("Not an image.")
    chosen.nth(0).click()
    expect_answer(page, "blue")
    playwright.expect(page.get_by_role("alert")).to_be_hidden()


@pytest.mark.parametrize("page", [{}, {"viewport": PHONE}], indirect=True)
def test_an_example_is_clicked_and_classified(page, urls, token):
    page.goto(urls["open"])
    playwright.expect(page.locator("#model-line")).to_contain_text("Version 3")
    playwright.expect(page.locator("#examples")).to_be_hidden()
    page.goto(urls["examples"])
    playwright.expect(page.get_by_role("alert")).to_have_text("This endpoint asks for a token.")
    playwright.expect(page.locator("#examples")).to_be_hidden()
    page.locator("#token").fill(token[0])
    page.keyboard.press("Enter")
    examples = page.get_by_role("list", name="Or try one of the test images:").get_by_role("button")
    playwright.expect(examples).to_have_text(["red", "blue"])
    for label in ("blue", "red"):
        examples.get_by_text(label).click()
        expect_answer(page, label)
        assert page.locator("#image").evaluate("image => image.naturalWidth") == 32
    playwright.expect(examples).to_have_count(2)
    if folder := os.environ.get("CONVOY_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/examples-{page.viewport_size['width']}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_a_refusal_is_shown_and_the_next_image_works(page, urls):
    page.goto(urls["open"])
    page.get_by_label("Choose images").set_input_files(png(b"junk", "junk.png"))
    playwright.expect(page.get_by_role("alert")).to_have_text("Not an image.")
    playwright.expect(page.get_by_role("status")).to_have_text("No answer.")
    page.get_by_label("Choose images").set_input_files(png(BLUE))
    expect_answer(page, "blue")
    playwright.expect(page.get_by_role("alert")).to_be_hidden()


def test_a_closed_endpoint_asks_for_its_token(page, urls, token):
    page.goto(urls["closed"])
    playwright.expect(page.get_by_role("alert")).to_have_text("This endpoint asks for a token.")
    field = page.locator("#token")
    playwright.expect(field).to_be_focused()
    field.fill("wrong")
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("alert")).to_have_text("This endpoint does not know that token.")
    field.fill(token[0])
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("heading", level=1)).to_have_text("Strongest Color")
    page.get_by_label("Choose images").set_input_files(png(BLUE))
    expect_answer(page, "blue")
    assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    assert page.evaluate("sessionStorage.getItem('convoy-token')") == token[0]
