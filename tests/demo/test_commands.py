"""``vocseg demo`` on the command line."""

import os
import signal
import socket
import sys
import threading
import time
import urllib.request

import pytest

from vocseg.demo.commands import trusted_hosts
from vocseg.demo.server import CONTENT_TYPE


@pytest.fixture
def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def until_it_answers(url, then):
    """Starts a thread that waits for the demo, calls ``then``, and presses Ctrl-C."""

    def wait():
        for _ in range(600):
            try:
                urllib.request.urlopen(url, timeout=5).read()
                break
            except OSError:
                time.sleep(0.05)
        try:
            then()
        finally:
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_the_demo_serves_until_ctrl_c(vocseg, checkpoint, free_port, pixels, encoded, monkeypatch):
    url, found, opened = f"http://127.0.0.1:{free_port}", [], []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def upload():
        request = urllib.request.Request(f"{url}/segment", encoded(pixels), {"Content-Type": CONTENT_TYPE})
        found.append(urllib.request.urlopen(request, timeout=20).status)

    thread = until_it_answers(url, upload)
    before = signal.getsignal(signal.SIGINT)
    status, out, err = vocseg("demo", "--ckpt_path", checkpoint, "--port", free_port, "--open", "true")
    thread.join()
    assert status == 0, err
    assert found == [200]
    assert opened == [url]
    assert f"Demo        {url}  (Ctrl-C ends it)" in out
    assert "best.ckpt: 7 classes, on " in out
    assert out.endswith("Demo ended\n")
    assert err == ""
    assert signal.getsignal(signal.SIGINT) is before
    with socket.create_server(("127.0.0.1", free_port)):  # the port is free again
        pass


def test_a_port_in_use_is_named(vocseg, checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        status, _, err = vocseg("demo", "--ckpt_path", checkpoint, "--port", port)
    assert status == 1
    assert err == (
        f"vocseg: Port {port} of 127.0.0.1 is in use: choose another with --port, or --port 0 for a free one.\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ckpt_path", "lost.ckpt"], "There is no file lost.ckpt."),
        (["--ckpt_path", "x.txt"], "x.txt"),
        ([], "the following arguments are required: --ckpt_path"),
        (["--ckpt_path", "{}", "--port", "70000"], "a port is a number from 0 to 65535"),
        (["--ckpt_path", "{}", "--port", "http"], "--port: invalid int value: 'http'"),
        (["--ckpt_path", "{}", "--host", "no.such.host.invalid"], "no.such.host.invalid, port 0, cannot be served"),
        (["--ckpt_path", "{}", "--device", "cuda:99"], "--device cuda:99 cannot be used"),
        (["--ckpt_path", "{}", "--device", "gpu"], "--device gpu cannot be used"),
        (["--ckpt_path", "{}", "--host", ""], "--host needs an address"),
        (["--ckpt_path", "{}", "--max_megabytes", "0"], "--max_megabytes: must be more than 0, got 0"),
        (["--ckpt_path", "{}", "--max_megapixels", "nan"], "--max_megapixels: must be more than 0, got nan"),
        (["--ckpt_path", "{}", "--opne", "true"], "unrecognized arguments: --opne true"),
    ],
)
def test_mistakes_are_said_in_one_sentence(vocseg, checkpoint, flags, message):
    flags = [str(checkpoint) if flag == "{}" else flag for flag in flags]
    status, _, err = vocseg("demo", "--port", "0", *flags)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("package", ["uvicorn", "starlette"])
def test_without_the_extra_one_sentence_says_what_to_install(vocseg, checkpoint, monkeypatch, package):
    monkeypatch.delitem(sys.modules, "vocseg.demo.server", raising=False)
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    status, _, err = vocseg("demo", "--ckpt_path", checkpoint)
    assert status == 1
    assert err == f'vocseg: vocseg demo needs {package}: pip install "vocseg[demo]"\n'


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)],
)
def test_names_are_checked_on_loopback_addresses(host, is_loopback):
    names = trusted_hosts(host)
    assert (host in names) if is_loopback else names is None


def test_serving_others_is_warned_of(vocseg, checkpoint, free_port):
    thread = until_it_answers(f"http://127.0.0.1:{free_port}", lambda: None)
    status, _, err = vocseg("demo", "--ckpt_path", checkpoint, "--port", free_port, "--host", "0.0.0.0")
    thread.join()
    assert status == 0
    assert "Warning: with --host 0.0.0.0 every machine that reaches this one can use the demo" in err
