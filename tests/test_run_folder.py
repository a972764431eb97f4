"""The folder of a run: its names, reading it, and writing its files atomically."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vocseg.confusion import ConfusionMatrices
from vocseg.data.labels import VOC_PALETTE
from vocseg.errors import VocsegError
from vocseg.metrics import Result
from vocseg.run_folder import RunFolder, read_lines, read_run, write_lines, write_matrices, write_result
from vocseg.saving import replacing_folder, write_atomically, write_json, write_mask, write_text

CLASSES = ["background", "cat", "dog"]


def create_run(path, lines="epoch,step,seconds,val/miou\n0,3,1.5,0.1\n1,6,1.5,0.2\n2,9,1.5,0.15\n"):
    path.mkdir(parents=True)
    (path / "config.yaml").write_text("seed_everything: 1\n")
    (path / "metrics.csv").write_text(lines)
    return RunFolder(path)


def create_result(images=3):
    dense = np.random.default_rng(0).integers(0, 3, (images, 4, 3))
    matrices = ConfusionMatrices.from_dense(dense)
    result = Result(1.5, 0.25, 0.5, 0.75, [0.5, 0.0, float("nan")], matrices)
    return result, dense


def equal(matrices, dense):
    return len(matrices) == len(dense) and all((matrices[i] == dense[i]).all() for i in range(len(dense)))


# names


def test_names_of_the_files_of_a_run(tmp_path):
    folder = RunFolder(tmp_path / "lightning_logs" / "net" / "version_2")
    relative = {
        "config.yaml": folder.config,
        "metrics.csv": folder.metrics,
        "record.json": folder.facts,
        "checkpoints": folder.checkpoints,
        "checkpoints/last.ckpt": folder.last,
        "checkpoints/best.ckpt": folder.best,
        "test_masks": folder.test_masks,
        "predictions": folder.predictions,
        "report": folder.report,
        "test.json": folder.scores("test"),
        "val.npz": folder.matrices("val"),
        "test_images.csv": folder.image_scores("test"),
        "test_paper_inferred.npz": folder.resized_matrices("test"),
    }
    assert {name: folder.path / name for name in relative} == relative


def test_a_run_is_named_after_its_experiment_and_version_and_a_record_after_its_folder(tmp_path, monkeypatch):
    assert RunFolder(tmp_path / "net" / "version_2").name == "net/version_2"
    assert RunFolder(tmp_path / "results" / "baseline").name == "baseline"
    create_run(tmp_path / "other" / "version_0")
    monkeypatch.chdir(tmp_path / "other" / "version_0")
    assert RunFolder.find(".").name == "other/version_0"


def test_configs_are_in_the_order_of_the_resumptions(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.configs == []
    for name in ("config_10.yaml", "config.yaml", "config_2.yaml"):
        (tmp_path / name).touch()
    assert [path.name for path in folder.configs] == ["config.yaml", "config_2.yaml", "config_10.yaml"]


def test_the_run_of_a_checkpoint(tmp_path):
    assert RunFolder.of_checkpoint(tmp_path / "net" / "checkpoints" / "best.ckpt") == RunFolder(tmp_path / "net")
    assert RunFolder.of_checkpoint(tmp_path / "best.ckpt") is None


# finding


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """Versions 2, 9 and 10 of a run ``net``."""
    monkeypatch.chdir(tmp_path)
    for version in (2, 9, 10):
        create_run(tmp_path / "lightning_logs" / "net" / f"version_{version}")
    return tmp_path / "lightning_logs"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("lightning_logs/net/version_9", "version_9"),
        ("lightning_logs/net", "version_10"),
        ("net", "version_10"),
        ("net/version_2", "version_2"),
    ],
)
def test_a_run_is_found_by_its_folder_its_versions_and_its_name(given, found, logs):
    assert RunFolder.find(given).path.resolve() == logs / "net" / found


def test_a_version_without_a_config_or_without_a_number_does_not_disturb(logs):
    (logs / "net" / "version_11").mkdir()  # a run that was killed before it wrote anything
    shutil.copytree(logs / "net" / "version_2", logs / "net" / "version_copy")
    assert RunFolder.find("net").path.name == "version_10"
    (logs / "net" / "version_11" / "metrics.csv").write_text("epoch\n")
    assert RunFolder.find("net").path.name == "version_11"


def test_a_run_that_does_not_exist_names_the_nearest(logs):
    with pytest.raises(VocsegError, match=r"no run nett: no folder with .* Did you mean 'net'\?"):
        RunFolder.find("nett")


# reading


def test_a_run_reads_as_it_was_written(tmp_path):
    folder = create_run(tmp_path / "net" / "version_0")
    (folder.path / "config_1.yaml").write_text("seed_everything: 2\n")
    result, dense = create_result()
    write_result(folder, "test", result, CLASSES, {"samples": []})
    write_matrices(folder.resized_matrices("test"), ConfusionMatrices.from_dense(dense * 2))
    write_json(folder.facts, {"commit": "0123"})
    run = read_run(folder)
    assert run.configs == [{"seed_everything": 1}, {"seed_everything": 2}]
    assert [line["val/miou"] for line in run.lines] == [0.1, 0.2, 0.15]
    assert (run.best_epoch, run.class_names, run.facts) == (1, CLASSES, {"commit": "0123"})
    assert list(run.scores) == ["test"]
    test = run.scores["test"]
    assert equal(test.matrices, dense)
    assert equal(test.resized, dense * 2)
    expected = {"images": 3, "loss": 1.5, "miou": 0.25, "pixel_accuracy": 0.5, "mean_accuracy": 0.75, "samples": []}
    assert expected.items() <= test.summary.items()
    assert test.summary["iou"] == {"background": 0.5, "cat": 0.0, "dog": None}  # JSON has no NaN
    assert test.summary["all_background"] == pytest.approx(result.all_background())
    assert not list(folder.path.glob("*.part"))


def test_an_incomplete_run_reads_as_far_as_it_goes(tmp_path):
    (tmp_path / "empty").mkdir()
    run = read_run(RunFolder(tmp_path / "empty"))
    assert (run.configs, run.lines, run.facts, run.scores) == ([], [], {}, {})
    assert (run.best_epoch, run.class_names) == (None, [])
    unvalidated = create_run(tmp_path / "unvalidated", "epoch,step,seconds,train/loss,val/miou\n0,3,1.5,2.0,\n")
    run = read_run(unvalidated)
    assert run.lines == [{"epoch": 0, "step": 3, "seconds": 1.5, "train/loss": 2.0}]
    assert run.best_epoch is None
    write_json(unvalidated.scores("test"), {"iou": {"a": 0.5}})  # as the oldest records: without matrices
    assert read_run(unvalidated).scores["test"].matrices is None


def test_a_folder_that_does_not_exist_is_no_run(tmp_path):
    with pytest.raises(VocsegError, match="no run"):
        read_run(RunFolder(tmp_path / "none"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", b"a: {b"),
        ("config.yaml", b"\xff\xfe\x00"),
        ("metrics.csv", b"epoch,val/miou\n0,0.1,0.2\n"),
        ("metrics.csv", b"epoch,val/miou\n0,high\n"),
        ("metrics.csv", b"step,val/miou\n0,0.1\n"),
        ("record.json", b'{"row": '),
        ("test.json", b'{"iou": '),
        ("test.json", b"[]"),
        ("test.json", b"{}"),
        ("test.json", b'{"iou": {"background": 0.5}}'),
        ("test.npz", b""),
        ("test.npz", b"PK\x03\x04 incomplete"),
        ("test_paper_inferred.npz", b"\x93NUMPY"),
    ],
)
def test_a_broken_file_of_a_run_is_an_error_that_names_the_run(name, content, tmp_path):
    folder = create_run(tmp_path / "net" / "version_0")
    write_result(folder, "test", create_result()[0], CLASSES)
    read_run(folder)
    (folder.path / name).write_bytes(content)
    with pytest.raises(VocsegError, match=r"The run .*version_0 cannot be read: ."):
        read_run(folder)


def test_arrays_with_python_objects_are_not_unpickled(tmp_path):
    folder = create_run(tmp_path / "net" / "version_0")
    write_result(folder, "test", create_result()[0], CLASSES)
    np.savez(folder.matrices("test"), matrices=np.array([{}], dtype=object))
    with pytest.raises(VocsegError, match="cannot be read"):
        read_run(folder)


def test_a_run_of_version_0_1_0_reads_and_reports(vocseg, tmp_path):
    """Its test.npz had dense arrays, and its test.json no mean class accuracy."""
    folder = create_run(tmp_path / "lightning_logs" / "net" / "version_0")
    result, dense = create_result()
    write_result(folder, "test", result, CLASSES)
    summary = json.loads(folder.scores("test").read_text())
    del summary["mean_accuracy"], summary["all_background"]["mean_accuracy"]
    folder.scores("test").write_text(json.dumps(summary))
    np.savez_compressed(folder.matrices("test"), matrices=dense.astype(np.int64), squashed=dense.astype(np.int64))
    assert equal(read_run(folder).scores["test"].matrices, dense)
    status, _, err = vocseg("report", "net")
    assert (status, err) == (0, "")
    page = (folder.report / "report.html").read_text()
    assert re.search(r">Test mIoU</span><b>0\.250</b>", page)
    assert re.search(r">Class accuracy</span><b>-</b>", page)


# writing


def test_lines_read_as_they_were_written(tmp_path):
    lines = [{"epoch": 0, "step": 3, "seconds": 1.5, "b": 1 / 3}, {"epoch": 1, "step": 6, "seconds": 1.5, "a": 1e-9}]
    write_lines(tmp_path / "metrics.csv", lines)
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,step,seconds,a,b\n0,3,1.5,,0.333")
    assert read_lines(tmp_path / "metrics.csv") == lines


def test_a_mask_reads_as_it_was_written(tmp_path):
    labels = np.arange(256).reshape(16, 16)
    write_mask(tmp_path / "masks" / "a.png", labels)
    with Image.open(tmp_path / "masks" / "a.png") as image:
        assert image.mode == "P"
        assert (np.array(image) == labels).all()
        assert image.getpalette() == VOC_PALETTE.ravel().tolist()


def fail(file):
    file.write(b"incomplete")
    raise KeyboardInterrupt


def test_an_exception_while_writing_leaves_the_previous_file(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert list(path.parent.iterdir()) == []
    write_text(path, "first")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert {file.name: file.read_text() for file in path.parent.iterdir()} == {"file.txt": "first"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "second" * 10_000),
        lambda path: write_json(path, {"second": list(range(10_000))}),
        lambda path: write_lines(path, [{"epoch": epoch} for epoch in range(10_000)]),
        lambda path: write_mask(path, np.random.default_rng(0).integers(0, 256, (200, 200))),
        lambda path: write_matrices(path, create_result(images=1000)[0].matrices),
    ],
    ids=["text", "json", "lines", "mask", "matrices"],
)
def test_a_full_disk_leaves_the_previous_file(write, tmp_path):
    path = tmp_path / "file"
    write_text(path, "first")
    (tmp_path / "file.part").symlink_to("/dev/full")  # writing there fails as on a full disk
    with pytest.raises(OSError, match="No space left on device"):
        write(path)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "first"}
    write(path)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vocseg.saving import replacing_folder, write_atomically

def write(file):
    file.write(b"incomplete")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "file":
    write_atomically(Path("target"), write)
else:
    replace, moves = os.replace, []
    def replace_or_die(source, target):
        if len(moves) == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        moves.append(target)
        replace(source, target)
    os.replace = replace_or_die
    with replacing_folder(Path("target")) as part:
        (part / "content").mkdir()
"""


def run_until_killed(folder, *words):
    done = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_kill_while_writing_leaves_the_previous_file(tmp_path):
    write_text(tmp_path / "target", "first")
    run_until_killed(tmp_path, "file")
    assert (tmp_path / "target").read_text() == "first"
    write_text(tmp_path / "target", "second")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"target": "second"}


def contents(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_replaced_when_the_new_one_is_complete(tmp_path):
    with replacing_folder(tmp_path / "a" / "target") as part:
        write_text(part / "first", "1")
        assert not (tmp_path / "a" / "target").exists()
    with replacing_folder(tmp_path / "a" / "target") as part:
        assert list(part.iterdir()) == []
        write_text(part / "second", "2")
        assert contents(tmp_path / "a" / "target") == {"first": "1"}
    assert contents(tmp_path) == {"a/target/second": "2"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_previous_folder(error, tmp_path):
    with pytest.raises(error), replacing_folder(tmp_path / "target"):
        raise error
    assert list(tmp_path.iterdir()) == []
    write_text(tmp_path / "target" / "first", "1")

    def write_and_fail():
        with replacing_folder(tmp_path / "target") as part:
            write_text(part / "second", "2")
            raise error

    with pytest.raises(error):
        write_and_fail()
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert contents(tmp_path) == {"target/first": "1"}


def test_a_failing_move_leaves_the_previous_folder(tmp_path, monkeypatch):
    write_text(tmp_path / "target" / "first", "1")
    replace = os.replace

    def fail_for_the_new_folder(source, target):
        if str(source).endswith(".part"):
            raise PermissionError("no")
        replace(source, target)

    with pytest.raises(PermissionError), replacing_folder(tmp_path / "target"):
        monkeypatch.setattr(os, "replace", fail_for_the_new_folder)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert contents(tmp_path) == {"target/first": "1"}


@pytest.mark.parametrize("moves", [0, 1], ids=["before the moves", "between the moves"])
def test_a_kill_loses_neither_folder(moves, tmp_path):
    """After a kill between the two moves, the previous folder is back when the folder is written again."""
    write_text(tmp_path / "target" / "first", "1")
    run_until_killed(tmp_path, "folder", str(moves))
    assert (tmp_path / "target").exists() is (moves == 0)
    with pytest.raises(ValueError), replacing_folder(tmp_path / "target"):  # noqa: PT011
        raise ValueError
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert contents(tmp_path) == {"target/first": "1"}
