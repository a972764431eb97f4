"""Tables and figures from records written by hand, and from those that are committed."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vocseg.paper.protocol import paper_inferred
from vocseg.paper.rows import declared
from vocseg.paper.tables import BEGIN, END

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def results(create_record, tmp_path):
    """Records of three rows; the second is the best of table 1."""
    for name, right in (("baseline_leaky", 0.3), ("baseline_relu_lr_1e-3", 0.9), ("focal_leaky", 0.5)):
        create_record(tmp_path / "results" / name, right)
    return tmp_path / "results"


def table(folder, number):
    with (folder / f"table_{number}.csv").open() as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def test_tables_have_the_scores_of_the_paper_ours_and_all_background(results, create_record, vocseg, tmp_path):
    expected, resized = create_record(tmp_path / "again", 0.9)
    status, _, err = vocseg("paper", "tables", "--results", results, "--to", "paper")
    assert (status, err) == (0, "")
    line = table(tmp_path / "paper", 1)["baseline_relu_lr_1e-3"]
    assert (line["paper_val_accuracy"], line["paper_test_iou"]) == ("0.7466", "0.0588")
    assert line["of_record_test_iou"] == f"{expected.miou:.4f}"
    assert line["of_record_val_accuracy"] == f"{expected.pixel_accuracy:.4f}"
    assert line["of_record_test_class_accuracy"] == f"{expected.mean_accuracy:.4f}"
    assert line["paper_inferred_val_iou"] == f"{paper_inferred(resized)['miou']:.4f}"
    assert float(line["test_iou_low"]) < expected.miou < float(line["test_iou_high"])
    assert (line["lr"], line["activation"]) == ("0.5", "relu")  # as recorded, not as declared
    floor = table(tmp_path / "paper", 1)["all background"]
    assert floor["of_record_val_iou"] == f"{expected.all_background()['miou']:.4f}"
    assert table(tmp_path / "paper", 6)["transfer"]["epochs"] == "not run: needs ImageNet weights of ResNet-34"
    assert table(tmp_path / "paper", 2)["cosine_relu"]["epochs"] == "not run"
    text = (tmp_path / "paper" / "tables.md").read_text()
    assert all(f"### Table {number}: " in text for number in range(1, 8))
    assert all(f"| {name} |" in text for name in declared().rows)


def test_claims_are_differences_between_rows_on_the_same_images(results, create_record, vocseg, tmp_path):
    worse, better = (create_record(tmp_path / "other", right)[0] for right in (0.3, 0.9))
    assert vocseg("paper", "tables", "--results", results, "--to", "paper")[0] == 0
    with (tmp_path / "paper" / "claims.csv").open() as file:
        lines = {(line[1], line[2]): line[3:] for line in csv.reader(file)}
    difference, interval, accuracy, *_ = lines["baseline_leaky", "baseline_relu_lr_1e-3"]
    assert difference == f"{worse.miou - better.miou:+.4f}"
    assert accuracy == f"{worse.pixel_accuracy - better.pixel_accuracy:+.4f}"
    low, high = (float(end) for end in interval.split(" to "))
    assert low < worse.miou - better.miou < high < 0
    assert lines["residual", "baseline_leaky"][0] == "not run"


def test_tables_and_figures_rebuild_to_the_byte(results, vocseg, tmp_path):
    for folder in ("first", "second"):
        assert vocseg("paper", "tables", "--results", results, "--to", folder)[0] == 0
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert "figure_06_loss.png" in files
    for name in files:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_the_committed_tables_rebuild_to_the_byte(vocseg, tmp_path):
    shutil.copytree(EXPERIMENTS / "results", tmp_path / "e" / "results")
    shutil.copy(EXPERIMENTS / "RESULTS.md", tmp_path / "e" / "RESULTS.md")
    words = ("--results", tmp_path / "e" / "results", "--to", tmp_path / "e" / "paper")
    status, _, err = vocseg("paper", "tables", *words)
    assert (status, err) == (0, "")
    rebuilt = sorted(path for path in (tmp_path / "e" / "paper").iterdir() if path.suffix != ".png")
    names = ["claims.csv", *(f"table_{number}.csv" for number in range(1, 8)), "tables.md"]
    assert [path.name for path in rebuilt] == names
    for path in rebuilt:
        assert path.read_bytes() == (EXPERIMENTS / "paper" / path.name).read_bytes(), path.name
    assert (tmp_path / "e" / "RESULTS.md").read_bytes() == (EXPERIMENTS / "RESULTS.md").read_bytes()


def test_masks_of_each_tables_best_row_are_drawn(results, voc_root, vocseg, tmp_path):
    status, _, err = vocseg("paper", "tables", "--results", results, "--to", "paper", "--data.root", voc_root)
    assert (status, err) == (0, "")
    pictures = {path.name for path in (tmp_path / "paper").glob("*.png")}
    assert pictures == {f"figure_{name}.png" for name in ("06_loss", "07_masks", "14_loss", "15_masks")}
    for path in (tmp_path / "paper").glob("*.png"):
        assert path.stat().st_size < 300_000
        with Image.open(path) as image:
            assert min(image.size) > 200


def test_a_document_beside_the_records_gets_the_tables_between_its_markers(results, vocseg, tmp_path):
    document = tmp_path / "RESULTS.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        assert vocseg("paper", "tables", "--results", results, "--to", "paper")[0] == 0
        text = document.read_text()
        assert text.startswith("before\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
        assert text.count("### Table 1: Baseline") == 1


def test_a_folder_without_records_is_an_error(vocseg, tmp_path):
    status, _, err = vocseg("paper", "tables", "--results", tmp_path / "none")
    assert status == 1
    assert "There are no records of rows" in err
    assert "vocseg paper rows" in err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "val.npz").unlink(), "val.npz is missing"),
        (lambda folder: (folder / "test_paper_inferred.npz").unlink(), "test_paper_inferred.npz is missing"),
        (lambda folder: (folder / "val.npz").write_bytes(b"PK\x03\x04 incomplete"), "cannot be read"),
        (lambda folder: (folder / "record.json").write_text('{"row": '), "cannot be read"),
        (lambda folder: (folder / "metrics.csv").unlink(), "metrics.csv is missing"),
        (lambda folder: shutil.rmtree(folder / "test_masks"), None),
    ],
)
def test_a_broken_record_is_named_and_the_rest_is_reported(spoil, says, results, vocseg, tmp_path):
    spoil(results / "focal_leaky")
    status, _, err = vocseg("paper", "tables", "--results", results, "--to", "paper")
    assert (status, says is None) in ((0, True), (1, False))
    assert says is None or (says in err and "focal_leaky" in err)
    assert "Traceback" not in err
    assert table(tmp_path / "paper", 1)["baseline_leaky"]["epochs"] == "2"
    assert table(tmp_path / "paper", 5)["focal_leaky"]["epochs"] == ("2" if says is None else "not run")


def test_a_record_of_other_classes_is_left_out(results, create_record, vocseg, tmp_path):
    create_record(results / "focal_leaky", 0.5, class_names=("background", "a", "b"))
    status, _, err = vocseg("paper", "tables", "--results", results, "--to", "paper")
    assert status == 1
    assert "focal_leaky is of other classes than the rest (3 instead of 7)" in err
    assert table(tmp_path / "paper", 5)["focal_leaky"]["epochs"] == "not run"


def test_an_image_that_the_tree_does_not_have_is_named(results, create_record, voc_root, vocseg, tmp_path):
    create_record(results / "baseline_leaky", 1.0, images=("elsewhere",))
    status, _, err = vocseg("paper", "tables", "--results", results, "--to", "paper", "--data.root", voc_root)
    assert status == 1
    assert "shows elsewhere" in err
