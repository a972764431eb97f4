"""Reports of real runs and of the committed records; opened in a browser where there is one."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from vocseg.cli import main
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.metrics import scores_of
from vocseg.report import write_report
from vocseg.run_folder import RunFolder, read_run

RESULTS = Path(__file__).parents[1] / "experiments" / "results"
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


def test_a_report_shows_curves_scores_images_and_settings(inside, capsys):
    status, out, err = report(capsys, "a")
    assert (status, err) == (0, "")
    run = inside / "lightning_logs" / "a" / "version_0"
    page = (run / "report" / "report.html").read_text()
    assert str((run / "report" / "report.html").relative_to(inside)) in out
    test = read_run(RunFolder(run)).scores["test"].summary
    assert f"<td>{test['miou']:.4f}</td>" in page
    assert f"<td>mean class accuracy</td><td>{test['mean_accuracy']:.4f}</td>" in page
    assert f"<td>{test['all_background']['miou']:.4f}</td>" in page
    for name in SYNTHETIC_CLASSES:
        assert f"<td>{name}</td><td>{test['iou'][name]:.4f}</td>" in page
    assert "Best test images" in page
    assert "max_epochs: 2" in page
    pictures = {path.name for path in (run / "report").glob("*.png")}
    assert pictures == {"run_loss.png", "run_miou.png", "run_confusion.png", "run_best.png"}  # 4 test images: no worst
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)  # the page needs no other file


def test_several_runs_are_compared(inside, capsys):
    shutil.copytree(inside / "lightning_logs" / "a" / "version_0", inside / "lightning_logs" / "a" / "version_1")
    status, _, err = report(capsys, "lightning_logs/a/version_0", "a", "b", "--to", "out")
    assert (status, err) == (0, "")
    page = (inside / "out" / "report.html").read_text()
    assert "Comparison" in page
    assert all(f"<td>{name}</td>" in page for name in ("a/version_0", "a/version_1", "b/version_0"))
    assert "not tested" in page
    assert {"compare_miou.png", "compare_iou.png"} <= {path.name for path in (inside / "out").iterdir()}


def test_missing_files_are_named_and_the_rest_is_reported(inside, capsys):
    run = inside / "lightning_logs" / "a" / "version_0"
    shutil.rmtree(run / "test_masks")
    (run / "metrics.csv").unlink()
    status, _, err = report(capsys, "a", "nowhere")
    assert status == 1
    assert "There is no run nowhere" in err
    assert "no metrics.csv" in err
    assert "cannot be shown" in err
    assert "Traceback" not in err
    assert "Test scores by class" in (run / "report" / "report.html").read_text()


@pytest.mark.parametrize("name", ["test.json", "test.npz", "config.yaml", "metrics.csv"])
def test_a_broken_file_is_reported_without_a_traceback(name, inside, capsys):
    (inside / "lightning_logs" / "a" / "version_0" / name).write_bytes(b"\x00{: [incomplete")
    status, _, err = report(capsys, "lightning_logs/a/version_0")
    assert status == 1
    assert "version_0" in err
    assert "Traceback" not in err


def test_a_run_that_does_not_exist_names_the_nearest(inside, capsys):
    (inside / "lightning_logs" / "baseline" / "version_0").mkdir(parents=True)
    status, _, err = report(capsys, "basline")
    assert status == 1
    assert "Did you mean 'baseline'" in err


def test_the_written_matrices_give_the_written_scores(folder):
    test = read_run(RunFolder(folder / "lightning_logs" / "a" / "version_0")).scores["test"]
    scores = scores_of(test.matrices.total())
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        assert scores[name] == pytest.approx(test.summary[name], abs=1e-6)


def test_committed_records_are_compared(capsys, tmp_path):
    """The older one of the two has scores by class, but no confusion matrices."""
    status, out, err = report(capsys, RESULTS / "mobilenet", RESULTS / "residual", "--to", tmp_path / "x")
    assert (status, err) == (0, "")
    page = (tmp_path / "x" / "report.html").read_text()
    assert f"Report  {tmp_path / 'x' / 'report.html'}" in out
    for name in ("mobilenet", "residual"):
        test = read_run(RunFolder(RESULTS / name)).scores["test"].summary
        assert f"<h2>{name}</h2>" in page
        assert f"<td>person</td><td>{test['iou']['person']:.4f}</td>" in page
    figures = {path.name for path in (tmp_path / "x").glob("*.png")}
    assert {"compare_miou.png", "compare_iou.png", "run_1_loss.png", "run_2_confusion.png"} <= figures
    assert "run_1_confusion.png" not in figures
    assert not list(RESULTS.glob("*/report"))


def test_runs_of_one_name_are_two_curves(tmp_path, monkeypatch):
    curves = {}
    monkeypatch.setattr("vocseg.report.curves_figure", lambda drawn, *_: curves.update(drawn))
    monkeypatch.setattr("vocseg.report.iou_figure", lambda drawn, *_: curves.update(drawn))
    monkeypatch.setattr("vocseg.report._figure", lambda *_: "")
    other = shutil.copytree(RESULTS / "residual", tmp_path / "residual")
    write_report([str(RESULTS / "residual"), str(other), str(RESULTS / "focal_leaky")], tmp_path / "x")
    assert {str(RESULTS / "residual"), str(other), "focal_leaky"} <= set(curves)


def test_an_image_without_valid_pixels_comes_last(inside, capsys):
    run = RunFolder(inside / "lightning_logs" / "a" / "version_0")
    matrices = read_run(run).scores["test"].matrices
    dense = np.stack([matrices[index] for index in range(len(matrices))])
    dense[1, -1, 0] = dense[1].sum()
    dense[1, :-1] = 0
    np.savez(run.matrices("test"), matrices=dense)
    status, _, err = report(capsys, "a")
    assert (status, err) == (0, "")
    caption = re.search(r'mIoU: ([^<"]*)', (run.report / "report.html").read_text())[1]
    assert caption.split(", ")[-1] == "test_0001 -"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_a_browser_shows_the_page(inside, capsys, tmp_path):
    assert report(capsys, "a", "--to", "out")[0] == 0
    picture = tmp_path / "page.png"
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--screenshot={picture}", "out/report.html"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert picture.stat().st_size > 20_000
