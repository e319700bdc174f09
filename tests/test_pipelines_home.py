"""The home page over real runs, in a real browser too."""

import http.client
import os
from pathlib import Path

import pytest
from test_pipelines_compare import versions  # noqa: F401 - a fixture
from test_pipelines_gate import CONFIG, project, train  # noqa: F401 - a fixture
from test_serving_page import CHROMIUM, FLAGS, PHONE

from core.errors import UserError
from models.tracking.runs import TRAINED
from pipelines import tasks
from pipelines.home import home_page, serve_home
from pipelines.workspace import LEDGER, open_registry, open_tracking
from serving.rollout.ledger import Entry, Release, append

pytestmark = pytest.mark.slow
LINKS = {"MLflow": "http://127.0.0.1:5000"}


@pytest.fixture
def full(versions, tmp_path):  # noqa: F811
    """Two versions, the second one live, a third one that waits."""
    second = versions[1]
    release = Release(
        image="convoy/c:2-cpu-1", image_id="sha256:2", model_name="classifier", model_version="2", run_id=second.run_id
    )
    append(LEDGER, Entry(what="deploy", target="cpu", to=release, why="<b>better</b>", by="ann"))
    asks = CONFIG.model_copy(update={"gate": CONFIG.gate.model_copy(update={"approval": "required"})})
    with pytest.raises(UserError, match="waits"):
        tasks.gate.fn(asks, train(tmp_path / "3"))
    tracking = open_tracking(CONFIG)
    for run_id in open_registry(CONFIG).versions():
        tracking.log(run_id).tag({TRAINED: "true"})


def get(url, path, host=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), answer.headers


def test_before_anything_has_run(workspace):
    page = home_page(CONFIG, LINKS)
    for words in ("Nothing has been deployed from here", "There is none yet", "Nothing waits", "0 lines, none changed"):
        assert words in page


def test_the_page_says_what_is_live_and_what_waits(full):
    page = home_page(CONFIG, LINKS)
    assert "by\nann" in page
    assert "&lt;b&gt;better" in page
    assert "convoy approve 3 --why TEXT" in page
    assert page.index("<b>commit</b>") < page.index("<b>version</b>v2") < page.index("<b>live</b>cpu")
    assert "4 lines, none changed or missing" in page
    with serve_home(CONFIG, 0, LINKS) as url:
        status, body, headers = get(url, "/")
        assert (status, body.startswith("<!doctype html>")) == (200, True)
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "Newly broken" in get(url, "/comparison/2")[1]
        assert "<h1>classifier v2</h1>" in get(url, "/card/2")[1]
        assert [get(url, path)[0] for path in ("/card/9", "/card/x", "/other/1", "/card")] == [404] * 4
        # A page elsewhere whose name leads to this machine.
        assert get(url, "/", host="elsewhere.example:80")[0] == 404
    text = LEDGER.read_text()
    LEDGER.write_text(text.replace("better", "worse"))
    assert "The ledger was altered" in home_page(CONFIG, LINKS)


@pytest.mark.browser
def test_it_works_on_a_phone(full):
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is missing: install your system's package of Chromium")
    with serve_home(CONFIG, 0, LINKS) as url, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport=PHONE)
        complaints = []
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(url)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        if folder := os.environ.get("CONVOY_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "home-phone.png", full_page=True)
            page.set_viewport_size({"width": 1100, "height": 900})
            page.screenshot(path=Path(folder) / "home.png", full_page=True)
        page.click("text=model card")
        assert page.inner_text("h1") == "classifier v2"
        assert complaints == []
        browser.close()
