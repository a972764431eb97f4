"""Tables and figures from hand-made records, and from those that are committed."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.metrics import Evaluation
from vocseg.paper.records import read_record, write_record
from vocseg.paper.rows import declared

REPOSITORY = Path(__file__).parent.parent
FACTS = {"seed": 0, "epochs": 2, "best_epoch": 1, "minutes": 0.5, "device": "a device", "precision": "32-true"}
CONFIG = "model: {optimizer: {init_args: {lr: 0.5, weight_decay: 0}}, decoder: {init_args: {activation: relu}}}\n"


def make_record(folder, run_folder, right, class_names=SYNTHETIC_CLASSES, images=("test_0000", "test_0002")):
    """A record of 20 images whose pixels are right with probability ``right``."""
    rng = np.random.default_rng(0)
    evaluation = Evaluation(len(class_names))
    for index in range(20):
        target = rng.integers(0, len(class_names), (30, 40))
        prediction = np.where(rng.random((30, 40)) < right, target, 0)
        evaluation.update_image(torch.from_numpy(prediction), torch.from_numpy(target), index)
    result = evaluation.compute()
    run_folder.mkdir(parents=True, exist_ok=True)
    (run_folder / "config.yaml").write_text(CONFIG)
    (run_folder / "metrics.csv").write_text(
        "epoch,step,seconds,train/loss,val/loss,val/miou\n0,3,1.5,2.0,2.1,0.1\n1,6,1.5,1.0,1.5,0.2\n"
    )
    masks = {name: np.full((30, 40), 3, dtype=np.uint8) for name in images}
    write_record(folder, run_folder, {"val": result, "test": result}, FACTS, list(class_names), masks)
    return result


@pytest.fixture
def results(tmp_path):
    """Records of three rows, the second of table 1 being the best of it."""
    for name, right in (("baseline_leaky", 0.3), ("baseline_relu_lr_1e-3", 0.9), ("focal_leaky", 0.5)):
        make_record(tmp_path / "results" / name, tmp_path / "run", right)
    return tmp_path / "results"


def table(folder, number):
    with (folder / f"table_{number}.csv").open() as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def test_tables_hold_the_papers_figures_ours_and_the_floor(results, vocseg, tmp_path):
    expected = make_record(tmp_path / "again", tmp_path / "run", 0.9)
    status, _, err = vocseg("tables", "--results", results, "--to", "paper")
    assert (status, err) == (0, "")
    line = table(tmp_path / "paper", 1)["baseline_relu_lr_1e-3"]
    assert (line["paper_val_accuracy"], line["paper_test_iou"]) == ("0.7466", "0.0588")
    assert line["of_record_test_iou"] == f"{expected.miou:.4f}"
    assert line["of_record_val_accuracy"] == f"{expected.pixel_accuracy:.4f}"
    assert line["paper_inferred_val_iou"] == f"{expected.paper_inferred()['miou']:.4f}"
    assert float(line["test_iou_low"]) < expected.miou < float(line["test_iou_high"])
    assert (line["lr"], line["activation"]) == ("0.5", "relu")  # the record's own, not the declared
    floor = table(tmp_path / "paper", 1)["all background"]
    assert floor["of_record_val_iou"] == f"{expected.all_background()['miou']:.4f}"
    assert table(tmp_path / "paper", 6)["transfer"]["epochs"] == "not run: needs ImageNet weights of ResNet-34"
    assert table(tmp_path / "paper", 2)["cosine_relu"]["epochs"] == "not run"
    text = (tmp_path / "paper" / "tables.md").read_text()
    assert all(f"### Table {number}: " in text for number in range(1, 8))
    assert all(f"| {name} |" in text for name in declared().rows)


def test_claims_are_differences_between_rows_on_the_same_images(results, vocseg, tmp_path):
    worse = make_record(tmp_path / "worse", tmp_path / "run", 0.3)
    better = make_record(tmp_path / "better", tmp_path / "run", 0.9)
    assert vocseg("tables", "--results", results, "--to", "paper")[0] == 0
    with (tmp_path / "paper" / "claims.csv").open() as file:
        lines = {(line[1], line[2]): line[3:] for line in csv.reader(file)}
    difference, interval, accuracy, *_ = lines["baseline_leaky", "baseline_relu_lr_1e-3"]
    assert difference == f"{worse.miou - better.miou:+.4f}"
    assert accuracy == f"{worse.pixel_accuracy - better.pixel_accuracy:+.4f}"
    low, high = (float(end) for end in interval.split(" to "))
    assert low < worse.miou - better.miou < high < 0
    assert lines["residual", "baseline_leaky"][0] == "not run"


def test_they_rebuild_to_the_byte(results, vocseg, tmp_path):
    for folder in ("first", "second"):
        assert vocseg("tables", "--results", results, "--to", folder)[0] == 0
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "figure_06_loss.png" in files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_committed_tables_rebuild_to_the_byte(vocseg, tmp_path):
    experiments = REPOSITORY / "experiments"
    shutil.copytree(experiments / "results", tmp_path / "e" / "results")
    shutil.copy(experiments / "RESULTS.md", tmp_path / "e" / "RESULTS.md")
    assert vocseg("tables", "--results", tmp_path / "e" / "results", "--to", tmp_path / "e" / "paper")[0] == 0
    rebuilt = sorted(path for path in (tmp_path / "e" / "paper").iterdir() if path.suffix != ".png")
    assert len(rebuilt) == 9  # seven tables, the claims, and all in Markdown
    for path in rebuilt:
        assert path.read_bytes() == (experiments / "paper" / path.name).read_bytes(), path.name
    assert (tmp_path / "e" / "RESULTS.md").read_bytes() == (experiments / "RESULTS.md").read_bytes()


def test_masks_of_each_tables_best_row_are_drawn(results, voc_root, vocseg, tmp_path):
    status, _, err = vocseg("tables", "--results", results, "--to", "paper", "--data.root", voc_root)
    assert (status, err) == (0, "")
    pictures = {path.name for path in (tmp_path / "paper").glob("*.png")}
    assert pictures == {f"figure_{name}.png" for name in ("06_loss", "07_masks", "14_loss", "15_masks")}
    for path in (tmp_path / "paper").glob("*.png"):
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_a_document_beside_the_records_gets_the_tables_between_its_marks(results, vocseg, tmp_path):
    document = tmp_path / "RESULTS.md"
    document.write_text("before\n<!-- tables: written by `vocseg tables` -->\nold\n<!-- end of tables -->\nafter\n")
    for _ in range(2):
        assert vocseg("tables", "--results", results, "--to", "paper")[0] == 0
        text = document.read_text()
        assert text.startswith("before\n")
        assert text.endswith("<!-- end of tables -->\nafter\n")
        assert "old" not in text
        assert text.count("### Table 1: Baseline") == 1


def test_no_records_are_told(vocseg, tmp_path):
    status, _, err = vocseg("tables", "--results", tmp_path / "none")
    assert status == 1
    assert "There are no records of rows" in err
    assert "vocseg rows" in err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "matrices.npz").unlink(), "matrices.npz is missing"),
        (lambda folder: (folder / "matrices.npz").write_bytes(b"PK\x03\x04 half"), "cannot be read"),
        (lambda folder: (folder / "record.json").write_text('{"row": '), "cannot be read"),
        (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv is missing"),
        (lambda folder: shutil.rmtree(folder / "masks"), None),
    ],
)
def test_a_half_written_record_is_told_and_the_rest_reported(spoil, says, results, vocseg, tmp_path):
    spoil(results / "focal_leaky")
    status, _, err = vocseg("tables", "--results", results, "--to", "paper")
    assert (status, says is None) in ((0, True), (1, False))
    assert says is None or (says in err and "focal_leaky" in err)
    assert "Traceback" not in err
    assert table(tmp_path / "paper", 1)["baseline_leaky"]["epochs"] == "2"
    assert table(tmp_path / "paper", 5)["focal_leaky"]["epochs"] == ("2" if says is None else "not run")


def test_a_record_of_other_classes_is_left_out(results, vocseg, tmp_path):
    make_record(results / "focal_leaky", tmp_path / "run", 0.5, class_names=("background", "a", "b"))
    status, _, err = vocseg("tables", "--results", results, "--to", "paper")
    assert status == 1
    assert "focal_leaky is of other classes than the rest (3 instead of 7)" in err
    assert table(tmp_path / "paper", 5)["focal_leaky"]["epochs"] == "not run"


def test_a_tree_without_the_photographs_is_told(results, voc_root, vocseg, tmp_path):
    make_record(results / "baseline_leaky", tmp_path / "run", 1.0, images=("elsewhere",))
    status, _, err = vocseg("tables", "--results", results, "--to", "paper", "--data.root", voc_root)
    assert status == 1
    assert "shows elsewhere" in err


def test_a_record_comes_back_as_it_was(results, tmp_path):
    expected = make_record(tmp_path / "again", tmp_path / "run", 0.9)
    record = read_record(tmp_path / "again")
    assert torch.equal(record.matrices["val"], expected.matrices)
    assert torch.equal(record.squashed["test"], expected.squashed)
    assert [line["val/miou"] for line in record.lines] == [0.1, 0.2]
    assert json.loads((tmp_path / "again" / "record.json").read_text())["test"]["miou"] == expected.miou
    assert not list(tmp_path.glob(".*"))  # nothing half-written stays
