"""Reports of real runs and of the committed records; opened in a browser where there is one."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from vocseg.cli import main
from vocseg.confusion import ConfusionMatrices, scores_of
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.intervals import bootstrap_interval, class_intervals
from vocseg.report.images import ImageScores
from vocseg.report.page import write_report
from vocseg.run_folder import RunFolder, read_run
from vocseg.saving import OwnedFolder, write_text

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
CHROMIUM = next((name for name in ("chromium", "chromium-browser", "google-chrome") if shutil.which(name)), None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, fit_flags, succeed_in):
    """Two runs, a and b, of which a was tested: the folder that holds lightning_logs."""
    folder = tmp_path_factory.mktemp("runs")
    flags = [*fit_flags, "--previews.images", "0"]
    test = ["test", "--ckpt_path", "lightning_logs/a/version_0/checkpoints/best.ckpt"]
    test += ["--scores", "[boundary, calibration]"]
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


def section(page, title):
    """The part of a page below a heading, up to the next of its level."""
    return page.split(f"<h2>{title}</h2>")[1].split("<h2>")[0]


def test_a_report_shows_scores_curves_images_and_settings(inside, capsys):
    status, out, err = report(capsys, "a")
    assert (status, err) == (0, "")
    run = inside / "lightning_logs" / "a" / "version_0"
    page = (run / "report" / "report.html").read_text()
    assert str((run / "report" / "report.html").relative_to(inside)) in out
    split = read_run(RunFolder(run)).scores["test"]
    test, (low, high) = split.summary, bootstrap_interval(split.matrices)
    assert page.count("a/version_0</h1>") == 1
    assert f"<b>{test['miou']:.3f}</b>" in page
    assert f"95 % interval {low:.3f} to {high:.3f}" in page
    for score in (test["pixel_accuracy"], test["mean_accuracy"], test["all_background"]["miou"]):
        assert f"<b>{score:.3f}</b>" in page
    assert "<dt>Seed</dt><dd>0</dd>" in page
    assert "<dt>Backbone</dt><dd>StridedEncoder</dd>" in page
    bars = re.findall(r'<li title="(\S+): ([\d.]+)(?:, 95 % interval ([\d.]+) to ([\d.]+))?', section(page, "Classes"))
    assert {name for name, *_ in bars} <= set(SYNTHETIC_CLASSES)
    assert [float(iou) for _, iou, *_ in bars] == sorted((float(iou) for _, iou, *_ in bars), reverse=True)
    intervals = dict(zip(SYNTHETIC_CLASSES, class_intervals(split.matrices), strict=True))
    for name, iou, *interval in bars:
        assert float(iou) == pytest.approx(test["iou"][name], abs=6e-5)
        assert [float(end) for end in interval] == pytest.approx(intervals[name], abs=6e-5)
    assert "<h3>Best</h3>" in section(page, "Test images")
    assert "<h3>Worst</h3>" not in page  # there are 4 test images
    assert "max_epochs: 2" in page
    assert [path.name for path in (run / "report").iterdir() if path.suffix != ".jsonl"] == ["report.html"]
    assert not re.findall(r"src=[\"'](?!data:)|@import|url\(|https?:", page)  # the page needs no other file


def test_the_matrix_and_the_curves_hold_their_values(inside, capsys):
    assert report(capsys, "a")[0] == 0
    folder = RunFolder(inside / "lightning_logs" / "a" / "version_0")
    page, run = (folder.report / "report.html").read_text(), read_run(folder)
    matrix = run.scores["test"].matrices.total()[:-1]
    data = json.loads(html.unescape(re.search(r'data-matrix="([^"]*)"', page)[1]))
    assert data["counts"] == {f"{row} {column}": matrix[row, column] for row, column in np.argwhere(matrix)}
    assert data["sums"] == matrix.sum(1).tolist()
    wrong = [1 - matrix[row, row] / matrix[row].sum() if matrix[row].any() else -1 for row in data["orders"][1]]
    assert wrong == sorted(wrong, reverse=True)
    curves = [json.loads(html.unescape(data)) for data in re.findall(r'data-points="([^"]*)"', page)]
    assert curves[0]["series"][0] == [[line["epoch"], f"{line['train/loss']:.4g}"] for line in run.lines]


def test_the_images_are_listed_with_links_to_their_files(inside, capsys):
    assert report(capsys, "a")[0] == 0
    folder = RunFolder(inside / "lightning_logs" / "a" / "version_0")
    images = section((folder.report / "report.html").read_text(), "Test images")
    links = [folder.report / unquote(link) for link in re.findall(r'href="([^"]*)"', images)]
    assert len(links) == 4 * 2 + 1
    assert all(link.is_file() for link in links)
    assert links[0].samefile(folder.image_scores("test"))
    cells = [re.findall("<td>(.*?)</td>", row) for row in images.split("<tbody>")[1].splitlines() if "<td>" in row]
    assert [row[0] for row in cells] == ["4", "3", "2", "1"]
    with folder.image_scores("test").open(newline="") as file:
        scores = {line["rank"]: line for line in csv.DictReader(file)}
    for rank, name, miou, *_ in cells:
        assert Path(scores[rank]["path"]).stem == name
        assert f"{float(scores[rank]['miou']):.3f}" == miou


def test_images_are_surprising_where_their_classes_are_good_elsewhere():
    """Of twenty images of class 1 one is wrong; those of class 2 are always bad, so no surprise."""
    dense = np.zeros((40, 4, 3), dtype=int)
    dense[:, 0, 0] = 100
    dense[:20, 1, 1] = 100
    dense[20:, 2, 0] = np.arange(60, 80)
    dense[20:, 2, 2] = np.arange(40, 20, -1)
    dense[7, 1] = [70, 30, 0]
    kinds = ImageScores.of(ConfusionMatrices.from_dense(dense)).kinds()
    best, worst, surprising = (indices for _, indices in kinds.values())
    assert set(best) < set(range(20))
    assert worst == [39, 38, 37, 36]
    assert surprising[0] == 7


def test_several_runs_are_compared(inside, capsys):
    other = shutil.copytree(
        inside / "lightning_logs" / "a" / "version_0", inside / "lightning_logs" / "a" / "version_1"
    )
    matrices = read_run(RunFolder(other)).scores["test"].matrices
    dense = np.stack([matrices[index] for index in range(len(matrices))])
    worse = dense.copy()  # every pixel of class 1 is predicted as background
    worse[:, 1, 0], worse[:, 1, 1:] = dense[:, 1].sum(1), 0
    worse = ConfusionMatrices.from_dense(worse)
    np.savez(other / "test.npz", **worse.to_arrays())
    status, _, err = report(capsys, "lightning_logs/a/version_0", "a", "b", "--to", "out")
    assert (status, err) == (0, "")
    page = (inside / "out" / "report.html").read_text()
    assert "Comparison of 3 runs</h1>" in page
    assert all(f"<td>{name}</td>" in page for name in ("a/version_0", "a/version_1", "b/version_0"))
    assert "not tested" in page
    low, high = bootstrap_interval(worse, minus=matrices)
    assert f"({low:+.3f} to {high:+.3f})</td>" in page
    assert "<h2>IoU by class</h2>" in page
    np.savez(other / "test.npz", **ConfusionMatrices.from_dense(dense[::-1]).to_arrays())  # other images
    assert report(capsys, "lightning_logs/a/version_0", "a", "--to", "out")[0] == 0
    assert "paired bootstrap" not in (inside / "out" / "report.html").read_text()


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
    assert "<h2>Classes</h2>" in (run / "report" / "report.html").read_text()


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
    """One is as vocseg 0.1.0 wrote them, with scores by class, but no confusion matrices."""
    old = shutil.copytree(RESULTS / "mobilenet", tmp_path / "mobilenet", ignore=shutil.ignore_patterns("*.npz"))
    status, out, err = report(capsys, old, RESULTS / "residual", "--to", tmp_path / "x")
    assert (status, err) == (0, "")
    page = (tmp_path / "x" / "report.html").read_text()
    assert f"Report  {tmp_path / 'x' / 'report.html'}" in out
    for name in ("mobilenet", "residual"):
        test = read_run(RunFolder(RESULTS / name)).scores["test"].summary
        assert f"<h2>{name}</h2>" in page
        assert f"<td>{test['iou']['person']:.3f}</td>" in page
    assert page.count("<h3>Classes</h3>") == 2
    assert page.count("<h3>Confusion matrix</h3>") == 1
    assert not list(RESULTS.glob("*/report"))


def test_runs_of_one_name_are_two_curves(tmp_path):
    other = shutil.copytree(RESULTS / "residual", tmp_path / "residual")
    page, _ = write_report([str(RESULTS / "residual"), str(other), str(RESULTS / "focal_leaky")], tmp_path / "x")
    chart = re.search(r"<b>Validation mIoU</b>(.*?)</figcaption>", page.read_text())[1]
    assert re.findall(r'<span class="key"[^>]*>(\S+)', chart) == [
        str(RESULTS / "residual"),
        str(other),
        "focal_leaky",
    ]


def test_figures_of_earlier_versions_are_deleted_and_those_of_others_kept(tmp_path):
    old = OwnedFolder(tmp_path, "report", "")
    write_text(tmp_path / "run_loss.png", "old", old.write)
    write_text(tmp_path / "mine.png", "mine")
    write_report([str(RESULTS / "residual")], tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".jsonl"} == {"mine.png", "report.html"}


def test_an_image_without_valid_pixels_comes_last(inside, capsys):
    run = RunFolder(inside / "lightning_logs" / "a" / "version_0")
    matrices = read_run(run).scores["test"].matrices
    dense = np.stack([matrices[index] for index in range(len(matrices))])
    dense[1, -1, 0] = dense[1].sum()
    dense[1, :-1] = 0
    np.savez(run.matrices("test"), matrices=dense)
    status, _, err = report(capsys, "a")
    assert (status, err) == (0, "")
    page = (run.report / "report.html").read_text()
    assert "<b>test_0001</b>" not in page
    assert re.search(r"<tbody><tr><td>4</td><td>test_0001</td><td>-</td><td>-</td><td>-</td><td>-</td>", page)


PROBE = """<script>{
const found = {}, text = selector => document.querySelector(selector).textContent;
const point = (svg, clientX, clientY) => svg.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY}));
const board = document.querySelector(".confusion .board"), box = () => board.getBoundingClientRect();
point(board.ownerSVGElement, box().left + 2, box().top + 2);
found.cell = text(".readout");
document.querySelector(".confusion input[value='1']").click();
point(board.ownerSVGElement, box().left + 2, box().top + 2);
found.sorted = text(".readout");
const chart = document.querySelector(".chart[data-points] svg"), {left, top, width} = chart.getBoundingClientRect();
point(chart, left + width - 9, top + 9);
found.epoch = text(".chart .when");
document.querySelector("th button").click();
found.first = text(".sortable tbody td");
const after = document.querySelector(".card .after");
document.querySelector("input[value=errors]").click();
found.errors = after.src === after.closest(".card").dataset.errors;
document.body.dataset.found = JSON.stringify(found);
}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to open the page with")
def test_a_browser_shows_values_sorts_and_changes_the_images(inside, capsys, tmp_path):
    assert report(capsys, "a", "--to", "out")[0] == 0
    page = inside / "out" / "report.html"
    text = page.read_text()
    page.write_text(text.replace("</body>", f"{PROBE}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    shown = subprocess.run([*command, "--dump-dom", str(page)], check=True, capture_output=True, timeout=120)
    found = json.loads(html.unescape(re.search(r'data-found="([^"]*)"', shown.stdout.decode())[1]))
    data = json.loads(html.unescape(re.search(r'data-matrix="([^"]*)"', text)[1]))
    assert found["cell"].startswith("background predicted as background: ")
    name = SYNTHETIC_CLASSES[data["orders"][1][0]]
    assert found["sorted"].startswith(f"{name} predicted as {name}: ")
    assert (found["epoch"], found["first"], found["errors"]) == ("epoch 1", "1", True)


def test_boundary_iou_and_calibration_are_shown_where_the_test_has_them(inside, capsys):
    assert report(capsys, "a")[0] == 0
    run = inside / "lightning_logs" / "a" / "version_0"
    page, scores = (run / "report" / "report.html").read_text(), json.loads((run / "test.json").read_text())
    boundaries = section(page, "Boundaries")
    assert f"Boundary mIoU {scores['boundary']['miou']:.3f}" in boundaries
    for name, value in scores["boundary"]["iou"].items():
        words = f"{value:.4f}" if value is not None else "does not occur"
        assert f'<li title="{name}: {words}' in boundaries
    calibration, curve = section(page, "Calibration"), scores["calibration"]
    assert f"calibration error {curve['ece']:.3f}" in calibration
    filled = [index for index, pixels in enumerate(curve["pixels"]) if pixels]
    assert calibration.count("<title>Confidence") == calibration.count('class="conf"') == len(filled)
    first = filled[0]
    assert f"<title>Confidence {curve['confidence'][first]:.3f}: {curve['accuracy'][first]:.1%} of" in calibration
    for name in ("boundary", "calibration"):
        del scores[name]
    (run / "test.json").write_text(json.dumps({**scores, "date": "2020-02-03T12:30:00+00:00"}))
    assert report(capsys, "a")[0] == 0
    page = (run / "report" / "report.html").read_text()
    assert "<h2>Boundaries" not in page
    assert "<h2>Calibration" not in page
    assert "<dt>Tested</dt><dd>2020-02-0" in page  # in local time


def test_a_split_of_void_alone_has_no_calibration_chart(inside, capsys):
    path = inside / "lightning_logs" / "a" / "version_0" / "test.json"
    empty = {"ece": None, "confidence": [None] * 15, "accuracy": [None] * 15, "pixels": [0] * 15}
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": empty}))
    assert report(capsys, "a")[0] == 0
    page = (path.parent / "report" / "report.html").read_text()
    assert "calibration error -." in section(page, "Calibration")
