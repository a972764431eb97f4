"""Real files and the real command line for every test."""

import contextlib
import io
import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small gain nothing from two, and lose much on a busy machine

import pytest
import torch

from vocseg.cli import main
from vocseg.data.synthetic import SYNTHETIC_CLASSES, write_tree


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory):
    """A small tree in VOC layout: 10 train, 5 val and 4 test images of synthetic images."""
    return write_tree(tmp_path_factory.mktemp("voc") / "root", train=10, val=5, test=4)


@pytest.fixture(scope="session", autouse=True)
def _machine(tmp_path_factory):
    """One thread, and a cache that is not the user's."""
    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def vocseg(tmp_path, monkeypatch, capsys):
    """Runs the command line in-process, in an empty folder; returns (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        status = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def fit_flags(voc_root):
    """The words of a fit that takes a few seconds, two epochs of quickstart on the small tree."""
    return [
        *("fit", "--config", "quickstart", "--data.root", str(voc_root), "--data.num_workers", "0"),
        *("--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]", "--data.image_size", "64"),
        *("--data.batch_size", "4", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--figures.every_n_epochs", "0"),
    ]


@pytest.fixture(scope="session")
def succeed_in():
    """Runs command lines in-process in a folder, each of which must succeed; returns what they print."""

    def call(folder, *commands):
        before, printed = os.getcwd(), io.StringIO()
        os.chdir(folder)
        try:
            with contextlib.redirect_stdout(printed):
                statuses = [main([str(word) for word in command]) for command in commands]
        finally:
            os.chdir(before)
        assert not any(statuses)
        return printed.getvalue()

    return call
