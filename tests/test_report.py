"""Reports of real runs; opened in a browser where there is one."""

import re
import shutil
import subprocess

import pytest
import torch

from vocseg.cli import main
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.metrics import scores_of
from vocseg.report import read_run

CHROMIUM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fit_flags, succeed_in):
    """Two runs, a and b, of which a was tested: the folder that holds lightning_logs."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*fit_flags, "--previews.images", "0"]
    test = ["test", "--ckpt_path", "lightning_logs/a/version_0/checkpoints/best.ckpt"]
    succeed_in(folder, [*flags, "--name", "a"], [*flags, "--name", "b"], test)
    return folder


@pytest.fixture
def inside(folder, tmp_path, monkeypatch):
    """A copy of the runs, as the current folder."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def report(capsys, *args):
    status = main(["report", *map(str, args)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_report_says_what_the_run_left(inside, capsys):
    status, out, err = report(capsys, "a")
    assert (status, err) == (0, "")
    run = inside / "lightning_logs" / "a" / "version_0"
    page = (run / "report" / "report.html").read_text()
    assert str((run / "report" / "report.html").relative_to(inside)) in out
    left = read_run(run)
    assert f"<td>{left.test['miou']:.4f}</td>" in page
    assert f"<td>{left.test['all_background']['miou']:.4f}</td>" in page
    for name in SYNTHETIC_CLASSES:
        assert f"<td>{name}</td><td>{left.test['iou'][name]:.4f}</td>" in page
    assert "Best test images" in page
    assert "max_epochs: 2" in page
    pictures = {path.name for path in (run / "report").glob("*.png")}
    assert pictures == {"run_loss.png", "run_miou.png", "run_confusion.png", "run_best.png"}  # 4 test images: no worst
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)  # nothing from outside


def test_several_runs_are_compared(inside, capsys):
    shutil.copytree(inside / "lightning_logs" / "a" / "version_0", inside / "lightning_logs" / "a" / "version_1")
    status, _, err = report(capsys, "lightning_logs/a/version_0", "a", "b", "--to", "out")
    assert (status, err) == (0, "")
    page = (inside / "out" / "report.html").read_text()
    assert "Comparison" in page
    assert all(f"<td>{name}</td>" in page for name in ("a/version_0", "a/version_1", "b/version_0"))
    assert "not tested" in page
    assert {"compare_miou.png", "compare_iou.png"} <= {path.name for path in (inside / "out").iterdir()}


def test_what_is_missing_is_told_and_the_rest_reported(inside, capsys):
    run = inside / "lightning_logs" / "a" / "version_0"
    shutil.rmtree(run / "test_masks")
    (run / "metrics.csv").unlink()
    status, _, err = report(capsys, "a", "nowhere")
    assert status == 1
    assert "There is no run nowhere" in err
    assert "no metrics.csv" in err
    assert "cannot be shown" in err
    assert "Traceback" not in err
    assert "Test, class by class" in (run / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["test.json", "test.npz", "config.yaml", "metrics.csv"])
def test_a_broken_file_is_told(name, inside, capsys):
    (inside / "lightning_logs" / "a" / "version_0" / name).write_bytes(b"\x00{: [half")
    status, _, err = report(capsys, "lightning_logs/a/version_0")
    assert status == 1
    assert "version_0" in err
    assert "Traceback" not in err


def test_no_run_names_the_nearest(inside, capsys):
    (inside / "lightning_logs" / "baseline" / "version_0").mkdir(parents=True)
    status, _, err = report(capsys, "basline")
    assert status == 1
    assert "Did you mean 'baseline'" in err


def test_the_matrices_left_are_those_of_the_score(folder):
    run = read_run(folder / "lightning_logs" / "a" / "version_0")
    assert scores_of(run.matrices.sum(0))["miou"] == pytest.approx(run.test["miou"], abs=1e-6)
    assert run.matrices.dtype == torch.int64


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_a_browser_shows_it(inside, capsys, tmp_path):
    assert report(capsys, "a", "--to", "out")[0] == 0
    picture = tmp_path / "page.png"
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "out/report.html"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert picture.stat().st_size > 20_000
