"""Records: written and read, and those that are committed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vocseg.confusion import scores_of
from vocseg.data.labels import VOC_CLASSES
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.errors import VocsegError
from vocseg.paper.records import read_record
from vocseg.paper.rows import declared
from vocseg.run_folder import RunFolder, read_run

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
COMMITTED = sorted(path.name for path in RESULTS.iterdir())


def equal(first, second):
    arrays = second.to_arrays()
    return all(np.array_equal(array, arrays[name]) for name, array in first.to_arrays().items())


def test_a_record_reads_as_it_was_written(create_record, tmp_path):
    result, resized = create_record(tmp_path / "results" / "row", 0.9)
    record = read_record(tmp_path / "results" / "row")
    for split in ("val", "test"):
        assert equal(record.scores[split].matrices, result.matrices)
        assert equal(record.scores[split].resized, resized)
        assert record.scores[split].summary["mean_accuracy"] == result.mean_accuracy
    assert (record.name, record.class_names) == ("row", list(SYNTHETIC_CLASSES))
    assert record.configs[0]["model"]["optimizer"]["init_args"]["lr"] == 0.5
    assert [line["val/miou"] for line in record.lines] == [0.1, 0.2]
    assert (record.facts["device"], record.best_epoch) == ("a device", 1)
    masks = sorted(record.folder.test_masks.iterdir())
    assert [path.name for path in masks] == ["test_0000.png", "test_0002.png"]
    with Image.open(masks[0]) as mask:
        assert (np.array(mask) == 3).all()
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["row"]  # no incomplete folder beside it


def test_a_failure_while_writing_keeps_the_previous_record(create_record, tmp_path):
    create_record(tmp_path / "results" / "row", 0.9)
    with pytest.raises(yaml.YAMLError):
        create_record(tmp_path / "results" / "row", 0.1, config="{")
    assert scores_of(read_record(tmp_path / "results" / "row").scores["val"].matrices.total())["miou"] > 0.5
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["row"]


def test_a_record_has_neither_absolute_paths_nor_needless_digits(create_record, tmp_path):
    config = {"data": {"root": "/home/someone/voc", "year": "2007"}, "list": [{"folder": "/mnt/disk"}, "a/b"]}
    metrics = "epoch,step,seconds,val/miou\n0,1234567,1.5,0.123456789\n"
    create_record(tmp_path / "row", 0.9, config=json.dumps(config), metrics=metrics)
    record = read_record(tmp_path / "row")
    expected = {"data": {"root": "/path/to/voc", "year": "2007"}, "list": [{"folder": "/path/to/disk"}, "a/b"]}
    assert record.configs == [expected]
    assert record.folder.metrics.read_text() == "epoch,step,seconds,val/miou\n0,1234567,1.5,0.123457\n"


@pytest.mark.parametrize("name", ["record.json", "config.yaml", "metrics.csv", "val.json", "test_paper_inferred.npz"])
def test_an_incomplete_record_names_the_missing_file(name, create_record, tmp_path):
    create_record(tmp_path / "row", 0.9)
    (tmp_path / "row" / name).unlink()
    with pytest.raises(VocsegError, match=f"row is incomplete: {name} is missing"):
        read_record(tmp_path / "row")


OF_ROWS = [name for name in COMMITTED if name in declared().rows]
"""Records that ``vocseg paper rows`` wrote; the others are run folders without their large files."""


def test_the_records_that_results_names_are_committed():
    assert len(OF_ROWS) == 26
    text = (RESULTS.parent / "RESULTS.md").read_text(encoding="utf-8")
    assert {name for name in COMMITTED if f"(results/{name})" in text} >= set(COMMITTED) - set(OF_ROWS)
    assert {name for name in re.findall(r"\(results/(\w+)\)", text)} <= set(COMMITTED)


@pytest.mark.parametrize("name", COMMITTED)
def test_each_committed_record_reads_and_has_one_format(name):
    run = read_run(RunFolder(RESULTS / name))
    assert {"commit", "device", "precision", "versions", "seed", "experiment", "minutes"} <= set(run.facts)
    assert (len(run.lines), run.best_epoch) == (run.facts["epochs"], run.facts["best_epoch"])
    assert [line["epoch"] for line in run.lines] == list(range(len(run.lines)))
    assert len(run.configs) == 1
    if run.scores:
        assert run.class_names == list(SYNTHETIC_CLASSES if name == "quickstart" else VOC_CLASSES)
    for scores in run.scores.values():
        derived = scores_of(scores.matrices.total())
        assert derived == pytest.approx({name: scores.summary[name] for name in derived}, abs=1e-6)
    if name not in OF_ROWS:  # of those that answer a question about val, the test split was left alone
        assert list(run.scores) in ([], ["test"], ["val", "test"])  # a sweep keeps both
        return
    read_record(RESULTS / name)  # complains of what is missing
    for split, images in (("val", 213), ("test", 210)):
        scores = run.scores[split]
        assert scores.summary["images"] == len(scores.matrices) == len(scores.resized) == images
        assert scores.resized.counts.sum() == images * 224 * 224
        with np.load(run.folder.matrices(split)) as file:
            assert set(file.files) == {"num_classes", "offsets", "cells", "counts"}


def test_committed_records_have_no_other_files():
    suffixes = {path.suffix for path in RESULTS.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".yaml", ".csv", ".npz", ".png"}
    assert {path.parent.name for path in RESULTS.rglob("*.png")} == {"test_masks"}
