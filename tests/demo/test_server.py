"""The HTTP interface of the demo: equal masks, limits, and one sentence for every bad upload."""

import base64
import io
import json
import re
import struct
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from vocseg.demo import segmentation
from vocseg.demo.server import CONTENT_TYPE, Limits, create_app
from vocseg.inference import probability_map
from vocseg.saving import write_mask

HOSTS = ["localhost", "127.0.0.1"]


@pytest.fixture(scope="session")
def client(task):
    app = create_app(task, "<run>/best.ckpt", Limits(megabytes=0.2, megapixels=0.1), HOSTS)
    return TestClient(app, base_url="http://127.0.0.1:7860", raise_server_exceptions=False)


def post(client, content, **headers):
    return client.post("/segment", content=content, headers={"Content-Type": CONTENT_TYPE, **headers})


def decoded(text):
    return base64.b64decode(text)


def error_of(response):
    """The sentence of a refusal."""
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert "\n" not in sentence
    assert "Traceback" not in sentence
    return sentence


def rotated(pixels, encoded):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(pixels, "JPEG", exif=exif)


def deep(pixels, encoded):
    return cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes()


UPLOADS = {
    "PNG": lambda pixels, encoded: encoded(pixels),
    "JPEG": lambda pixels, encoded: encoded(pixels, "JPEG"),
    "rotated by EXIF": rotated,
    "grey": lambda pixels, encoded: encoded(pixels[..., 0]),
    "alpha": lambda pixels, encoded: encoded(np.dstack([pixels, pixels[..., :1]])),
    "CMYK": lambda pixels, encoded: encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG"),
    "16 bits": deep,
    "16-bit TIFF": lambda pixels, encoded: encoded(Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "TIFF"),
    "WebP": lambda pixels, encoded: encoded(pixels, "WEBP"),
    "one pixel": lambda pixels, encoded: encoded(pixels[:1, :1]),
}


@pytest.mark.parametrize("kind", UPLOADS)
def test_the_answer_is_what_the_task_computes_from_the_file(client, task, pixels, encoded, tmp_path, kind):
    content = UPLOADS[kind](pixels, encoded)
    (tmp_path / "x").write_bytes(content)
    labels = task.segment(tmp_path / "x")
    answer = post(client, content).json()
    assert (answer["height"], answer["width"]) == labels.shape
    assert answer["input_size"] == [32, 48]
    write_mask(tmp_path / "mask.png", labels)
    assert decoded(answer["mask"]) == (tmp_path / "mask.png").read_bytes()
    assert zlib.decompress(decoded(answer["labels"])) == labels.tobytes()
    photograph = Image.open(io.BytesIO(decoded(answer["photograph"])))
    assert photograph.size == labels.shape[::-1]
    read, logits = task.image_logits(content)
    assert np.abs(np.array(photograph).astype(int) - read).mean() < 6
    sent = answer["probabilities"]
    steps = np.frombuffer(decoded(sent["values"]), "<u2").reshape(-1, sent["height"], sent["width"])
    expected = probability_map(logits, (32, 48)).numpy()
    assert np.exp(steps / -1000.0) == pytest.approx(expected, abs=0.001)
    assert kind == "one pixel" or len(np.unique(labels)) > 1


def test_many_probabilities_are_sent_at_a_smaller_size(client, pixels, encoded, monkeypatch):
    monkeypatch.setattr(segmentation, "MOST_PROBABILITIES", 1000)
    sent = post(client, encoded(pixels)).json()["probabilities"]
    classes = len(decoded(sent["values"])) // 2 // (sent["height"] * sent["width"])
    assert 500 < classes * sent["height"] * sent["width"] <= 1000
    assert sent["width"] / sent["height"] == pytest.approx(1.5, rel=0.1)


def bomb():
    """The start of a PNG of 10**10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


BAD = {
    "text": (lambda pixels, encoded: b"hello", 422, "no JPEG, PNG, WebP, BMP or TIFF image"),
    "nothing": (lambda pixels, encoded: b"", 422, "The file is empty"),
    "truncated": (
        lambda pixels, encoded: encoded(pixels, "JPEG")[:900],
        422,
        "The file cannot be read: image file is t",
    ),
    "broken PNG": (lambda pixels, encoded: encoded(pixels)[:900], 422, "The file cannot be read"),
    "start of a PNG": (lambda pixels, encoded: encoded(pixels)[:20], 422, "."),
    "bomb": (lambda pixels, encoded: bomb(), 422, "too large; at most 0.1 megapixels"),
    "too many pixels": (
        lambda pixels, encoded: encoded(np.zeros((401, 250, 3), np.uint8)),
        422,
        r"250x401 pixels; at most 0\.1 megapixels",
    ),
    "too many bytes": (lambda pixels, encoded: bytes(200_001), 413, r"more than 0\.2 MB"),
    "too many bytes, in parts": (lambda pixels, encoded: iter([bytes(1000)] * 201), 413, r"more than 0\.2 MB"),
    "PostScript, which runs programs": (
        lambda pixels, encoded: encoded(pixels, "EPS"),
        422,
        "no JPEG, PNG, WebP, BMP or TIFF image",
    ),
    "values of unknown scale": (
        lambda pixels, encoded: encoded(Image.fromarray(pixels[..., 0].astype(np.float32)), "TIFF"),
        422,
        "The file has floats from 0 to",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_uploads_are_refused_in_one_sentence(client, pixels, encoded, kind):
    make, status, message = BAD[kind]
    response = post(client, make(pixels, encoded))
    assert response.status_code == status
    assert re.search(message, error_of(response)), response.text


def test_other_requests_are_refused(client, pixels, encoded):
    assert client.get("/nothing").status_code == 404
    assert error_of(client.get("/segment")) == "Method Not Allowed"
    assert client.get("/%2e%2e/%2e%2e/etc/passwd").status_code == 404
    for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded"):  # any site can send these
        response = post(client, encoded(pixels), **{"Content-Type": kind})
        assert response.status_code == 415
        assert CONTENT_TYPE in error_of(response)
    preflight = client.options(
        "/segment", headers={"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
    )
    assert preflight.status_code == 405
    assert not [name for name in preflight.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("host", "status"), [("localhost:7860", 200), ("127.0.0.1", 200), ("evil.example:7860", 400)])
def test_only_the_names_of_this_computer_are_answered(client, host, status):
    """Of a site whose name points here, the browser sends the site's name (DNS rebinding)."""
    assert client.get("/", headers={"Host": host}).status_code == status


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(client, task):
    response = client.get("/")
    assert not re.findall(r"https?:|//\w+\.\w|@import|url\(", response.text)
    assert "Checkpoint &lt;run&gt;/<wbr>best.ckpt" in response.text
    setup = json.loads(re.search(r'id="setup">(.*?)</script>', response.text)[1])
    assert [entry["name"] for entry in setup["classes"]] == task.class_names
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy.partition("style-src")[0]


def test_class_names_cannot_end_the_script(task, monkeypatch):
    monkeypatch.setattr(task, "class_names", ["</script><b>", *task.class_names[1:]])
    page = TestClient(create_app(task, "", Limits(1, 1))).get("/").text
    assert "</script><b>" not in page
    assert json.loads(re.search(r'id="setup">(.*?)</script>', page)[1])["classes"][0]["name"] == "</script><b>"


def test_a_failure_shows_no_traceback(client, task, pixels, encoded, monkeypatch):
    def fail(image):
        raise RuntimeError("secret")

    monkeypatch.setattr(task, "image_logits", fail)
    response = post(client, encoded(pixels))
    assert response.status_code == 500
    assert "secret" not in error_of(response)


def test_too_little_memory_is_said(client, task, pixels, encoded, monkeypatch):
    def fail(image):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(task, "image_logits", fail)
    assert "not enough memory" in error_of(post(client, encoded(pixels)))


def test_one_image_at_a_time_and_the_page_meanwhile(client, task, pixels, encoded, monkeypatch):
    segment, running, most, go = task.image_logits, [], [], threading.Event()

    def slow(image):
        running.append(1)
        most.append(len(running))
        assert go.wait(10)
        time.sleep(0.05)
        running.pop()
        return segment(image)

    monkeypatch.setattr(task, "image_logits", slow)
    statuses = []
    content = encoded(pixels)
    with client:  # one event loop for all threads, as a server has
        uploads = [
            threading.Thread(target=lambda: statuses.append(post(client, content).status_code)) for _ in range(3)
        ]
        for upload in uploads:
            upload.start()
        while not running:
            time.sleep(0.01)
        assert client.get("/").status_code == 200
        go.set()
        for upload in uploads:
            upload.join(20)
    assert statuses == [200, 200, 200]
    assert max(most) == 1


def test_nothing_is_written(client, pixels, encoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    opened = Path.open

    def refuse(path, *args, **kwargs):
        assert not kwargs.get("mode", args[0] if args else "r").startswith(("w", "a", "x"))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    assert post(client, encoded(pixels)).status_code == 200
    assert post(client, b"../../etc/passwd").status_code == 422
    assert not list(tmp_path.iterdir())
