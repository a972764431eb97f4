"""The page of the demo in a real browser."""

import re
import shutil
import socket
import threading

import numpy as np
import pytest
import uvicorn
from PIL import Image

from vocseg.demo.commands import trusted_hosts
from vocseg.demo.server import Limits, create_app
from vocseg.inference import probability_map
from vocseg.overlays import OVERLAY_COLOURS

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome")


@pytest.fixture(scope="module")
def url(task):
    app = create_app(task, "best.ckpt", Limits(1, 1), trusted_hosts("127.0.0.1"))
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium, url):
    context = chromium.new_context(viewport={"width": 1440, "height": 1000})
    page, problems, elsewhere = context.new_page(), [], []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((url, "blob:", "data:")) else elsewhere.append(1))
    page.on(
        "console", lambda line: problems.append(line.text) if line.type == "error" and "422" not in line.text else 0
    )
    page.goto(url)
    yield page
    context.close()
    assert not problems
    assert not elsewhere


def colour_at(page, x, y):
    """The overlay's colour and opacity at a pixel of the photograph, which is as large."""
    return page.evaluate(
        "([x, y]) => [...document.getElementById('overlay').getContext('2d').getImageData(x, y, 1, 1).data]", [x, y]
    )


def test_from_a_dropped_photograph_to_its_mask(page, task, pixels, encoded, tmp_path):
    content, labels = encoded(pixels), task.segment(pixels)
    handle = page.evaluate_handle(
        """([good, bad]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(good)], "a<b>.photo.png"));
          transfer.items.add(new File([new Uint8Array(bad)], "notes.txt"));
          return transfer;
        }""",
        [list(content), list(b"hello")],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": handle})
    page.wait_for_selector("#problems p")
    assert (
        page.inner_text("#problems")
        == "notes.txt: The file is no JPEG, PNG, WebP, BMP or TIFF image that can be shown."
    )
    assert page.locator("#strip li").count() == 1
    assert "90\u00d760 pixels, resized to 48\u00d732 for the network" in page.inner_text("#facts")

    # classes with their shares, the largest first
    found, counts = np.unique(labels, return_counts=True)
    order = [int(found[index]) for index in np.argsort(-counts, kind="stable")]
    assert len(order) > 1
    rows = [re.split(r"\n+", text.strip()) for text in page.locator("#classes li").all_inner_texts()]
    assert [row[0] for row in rows] == [task.class_names[label] for label in order]
    for row, label in zip(rows, order, strict=True):
        assert float(row[1].rstrip(" %").lstrip("< ")) == pytest.approx(100 * (labels == label).mean(), abs=0.51)

    # class and probability under the pointer
    _, logits = task.image_logits(pixels)
    probabilities = probability_map(logits, labels.shape).numpy()
    box = page.locator("#overlay").bounding_box()
    for x, y in ((0, 0), (89, 59), (31, 20), (70, 7)):
        page.mouse.move(box["x"] + (x + 0.5) / 90 * box["width"], box["y"] + (y + 0.5) / 60 * box["height"])
        assert page.inner_text("#at") == f"At {x}, {y}"
        name, share = re.fullmatch(r"(\w+) ([\d.]+) %", page.inner_text("#tip")).groups()
        assert name == task.class_names[labels[y, x]]
        assert float(share) == pytest.approx(100 * probabilities[:, y, x].max(), abs=0.6)
    guesses = [text.split() for text in page.locator("#readout .guess").all_inner_texts()]
    best = np.argsort(-probabilities[:, y, x])[:3]
    assert [guess[0] for guess in guesses] == [task.class_names[label] for label in best]

    # the keyboard
    page.focus("#overlay")
    page.keyboard.press("Escape")
    assert page.inner_text("#at") == "Under the pointer"
    page.keyboard.press("Shift+ArrowRight")
    assert page.inner_text("#at") == "At 46, 30"

    # colours, opacity, and a class that is not shown
    label = next(label for label in order if label)
    y, x = map(int, np.argwhere(labels == label)[0])
    assert colour_at(page, x, y)[:3] == pytest.approx(OVERLAY_COLOURS[label].tolist(), abs=3)  # times opacity, as bytes
    page.uncheck("#contours")
    page.locator("#opacity").fill("100")
    assert colour_at(page, x, y) == [*OVERLAY_COLOURS[label].tolist(), 255]
    page.locator("#classes li", has_text=task.class_names[label]).locator("input").uncheck()
    assert colour_at(page, x, y)[3] == 0

    with page.expect_download() as download:
        page.click("#mask")
    assert download.value.suggested_filename.endswith(".photo.png")
    download.value.save_as(tmp_path / "mask.png")
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P"
    assert np.array_equal(np.array(mask), labels)
    with page.expect_download() as download:
        page.click("#picture")
    download.value.save_as(tmp_path / "overlay.png")
    assert Image.open(tmp_path / "overlay.png").size == (90, 60)


def test_several_photographs_on_a_narrow_screen(page, task, pixels, encoded, tmp_path):
    page.set_viewport_size({"width": 390, "height": 844})
    files = [tmp_path / "one.png", tmp_path / "two.jpg"]
    files[0].write_bytes(encoded(pixels))
    files[1].write_bytes(encoded(pixels[:, :40], "JPEG"))
    page.set_input_files("#files", files)
    page.get_by_role("button", name="All 2 masks").wait_for()
    assert page.get_attribute("#photograph", "alt") == "one.png"
    page.get_by_role("button", name="two.jpg").click()
    assert "40\u00d760 pixels" in page.inner_text("#facts")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    with page.expect_download() as first:
        page.get_by_role("button", name="All 2 masks").click()
    assert first.value.suggested_filename == "one.png"


def test_a_file_that_is_too_large_is_not_sent(page, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(1_000_001))
    sent = []
    page.on("request", lambda request: sent.append(request.url))
    page.set_input_files("#files", tmp_path / "large.png")
    page.wait_for_selector("#problems p")
    assert page.inner_text("#problems") == "large.png: The file has more than 1 MB."
    assert not sent
