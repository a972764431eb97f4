"""Records: written and read, and those that are committed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vocseg.data.labels import VOC_CLASSES
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.errors import VocsegError
from vocseg.metrics import scores_of
from vocseg.paper.records import read_record, write_record
from vocseg.paper.rows import declared
from vocseg.run_folder import RunFolder, read_run

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
COMMITTED = sorted(path.name for path in RESULTS.iterdir())
SCORES_ONLY = {"baseline", "mobilenet", "quickstart"}
"""The oldest records, from before confusion matrices were kept."""


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
    result, resized = create_record(tmp_path / "results" / "row", 0.9)
    both = {"val": result, "test": result}
    missing = [tmp_path / "none.png"]
    with pytest.raises(FileNotFoundError):
        write_record(
            tmp_path / "results" / "row",
            RunFolder(tmp_path / "run"),
            both,
            dict.fromkeys(both, resized),
            {},
            SYNTHETIC_CLASSES,
            missing,
        )
    assert read_record(tmp_path / "results" / "row").facts["device"] == "a device"
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["row"]


def test_a_record_has_neither_paths_of_the_machine_nor_needless_digits(create_record, tmp_path):
    create_record(tmp_path / "row", 0.9)
    run_folder = RunFolder(tmp_path / "run")
    config = {"data": {"root": "/home/someone/voc", "year": "2007"}, "callbacks": [{"folder": "/mnt/disk"}]}
    run_folder.config.write_text(yaml.safe_dump(config))
    (run_folder.path / "config_1.yaml").write_text(yaml.safe_dump(config))
    run_folder.metrics.write_text("epoch,step,seconds,val/miou\n0,1234567,1.5,0.123456789\n")
    result, resized = read_record(tmp_path / "row").scores["val"], None
    assert result is not None and resized is None
