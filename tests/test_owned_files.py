"""No command replaces a file that it did not write: the real command line on folders with a user's files."""

import os
import shutil
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vocseg.errors import VocsegError
from vocseg.paper.tables import BEGIN, END, write_tables
from vocseg.records import write_record
from vocseg.run_folder import RunFolder
from vocseg.saving import OwnedFolder, sample_names, unique_names, write_atomically, write_text

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
RESULTS = Path(__file__).parents[1] / "experiments" / "results"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, fit_flags, succeed_in):
    """A run folder."""
    folder = tmp_path_factory.mktemp("trained")
    succeed_in(folder, [*fit_flags, "--trainer.max_epochs", "1", "--previews.images", "0"])
    return folder / "lightning_logs" / "quickstart" / "version_0"


@pytest.fixture
def photos(tmp_path):
    """A folder with two images, a.jpg and b.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def predict(trained, vocseg):
    def call(path, output_dir, *flags):
        output = ["--predictions.output_dir", output_dir] if output_dir else []
        words = ["predict", "--ckpt_path", trained / "checkpoints" / "best.ckpt", "--data.predict_path", path]
        return vocseg(*words, *output, *QUIET, *flags)

    return call


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(outcome, *words):
    status, out, err = outcome
    assert status == 1
    assert err.count("\n") == 1, err
    assert all(word in err for word in words), err
    assert "written to" not in out


@pytest.mark.parametrize(
    ("given", "output"),
    [("photos", "photos"), ("photos/*", "photos"), ("photos/b.png", "photos/../photos/"), ("photos", "link")],
)
def test_predict_never_replaces_the_images(given, output, photos, predict, tmp_path):
    (tmp_path / "link").symlink_to(photos)
    before = contents(photos)
    assert_refused(predict(given, output), "b.png", "is an input", "--predictions.output_dir")
    assert contents(photos) == before


@pytest.mark.parametrize(
    ("file", "flags"),
    [
        ("index.html", []),
        ("overlays/a.jpg", []),
        ("overlays", []),  # a file in place of the folder
        ("probabilities/a.npz", ["--predictions.probabilities", "true"]),
        ("a.png", []),
        ("b.png", ["--predictions.overlays", "false", "--predictions.contact_sheet", "false"]),
    ],
)
def test_predict_refuses_before_the_first_file(file, flags, photos, predict, tmp_path):
    (tmp_path / "site" / file).parent.mkdir(parents=True)
    (tmp_path / "site" / file).write_text("mine")
    before = contents(tmp_path / "site")
    assert_refused(predict("photos", "site", *flags), f"site/{file}", "--predictions.output_dir")
    assert contents(tmp_path / "site") == before


def test_a_folder_that_is_a_file_is_refused_in_one_line(photos, predict):
    assert_refused(predict("photos", "photos/b.png"), "photos/b.png is no folder")


def test_files_that_are_not_written_may_lie_beside(photos, predict, tmp_path):
    write_text(tmp_path / "out" / "index.html", "mine")
    write_text(tmp_path / "out" / "overlays" / "a.jpg", "mine")
    status, _, err = predict("photos", "out", "--predictions.overlays", "false", "--predictions.contact_sheet", "false")
    assert (status, err) == (0, "")
    assert (tmp_path / "out" / "index.html").read_text() == "mine"
    assert (tmp_path / "out" / "a.png").is_file()


def test_predict_replaces_its_own_files_but_none_that_was_changed(photos, predict, tmp_path):
    assert predict("photos", "out")[0] == 0
    # other weights, so that every file gets another content; a copy of the folder is as good as the folder
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    before = contents(tmp_path / "copy")
    Image.fromarray(np.zeros((50, 60, 3), dtype=np.uint8)).save(photos / "a.jpg")
    status, _, err = predict("photos", "copy", "--predictions.probabilities", "true")
    assert (status, err) == (0, "")
    after = contents(tmp_path / "copy")
    assert after[tmp_path / "copy" / "a.png"] != before[tmp_path / "copy" / "a.png"]
    assert after[tmp_path / "copy" / "overlays" / "a.jpg"] != before[tmp_path / "copy" / "overlays" / "a.jpg"]
    corrected = tmp_path / "copy" / "b.png"
    Image.fromarray(np.full((30, 40), 3, dtype=np.uint8)).save(corrected)
    after = contents(tmp_path / "copy")
    assert_refused(predict("photos", "copy"), "copy/b.png was changed after vocseg predict wrote it")
    assert contents(tmp_path / "copy") == after


def test_an_own_overlay_is_not_replaced_while_it_is_the_input(photos, predict, tmp_path):
    assert predict("photos", "out")[0] == 0
    before = contents(tmp_path / "out")
    assert_refused(predict("out/overlays", "out"), "overlays/a.jpg", "is an input")
    assert contents(tmp_path / "out") == before


def test_a_link_in_the_output_folder_is_not_replaced(photos, predict, tmp_path):
    assert predict("photos", "out")[0] == 0
    (tmp_path / "out" / "a.png").rename(tmp_path / "elsewhere.png")
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert_refused(predict("photos", "out"), "out/a.png")
    assert (tmp_path / "out" / "a.png").is_symlink()


def test_the_runs_own_predictions_are_replaced(trained, photos, vocseg, tmp_path):
    run = shutil.copytree(trained, tmp_path / "lightning_logs" / "x" / "version_0")
    words = ["predict", "--ckpt_path", run / "checkpoints" / "best.ckpt", "--data.predict_path", "photos", *QUIET]
    for _ in range(2):
        status, _, err = vocseg(*words)
        assert (status, err) == (0, "")
    assert {path.name for path in (run / "predictions").glob("*.png")} == {"a.png", "b.png"}
    (run / "predictions" / "a.png").write_bytes(b"corrected")
    assert_refused(vocseg(*words), "predictions/a.png")


@pytest.mark.parametrize("file", ["test.json", "test.npz", "test_images.csv", "test_masks/test_0001.png"])
def test_test_refuses_files_of_others_in_the_checkpoints_folder(file, trained, vocseg, tmp_path):
    """A checkpoint that was moved into a project: its run folder is the project, test.json may be annotations."""
    project = tmp_path / "project"
    (project / "checkpoints").mkdir(parents=True)
    shutil.copy(trained / "checkpoints" / "best.ckpt", project / "checkpoints")
    write_text(project / file, "mine")
    words = ["test", "--ckpt_path", project / "checkpoints" / "best.ckpt", *QUIET]
    assert_refused(vocseg(*words), f"project/{file}", "Move it away")
    assert (project / file).read_text() == "mine"
    assert len([path for path in project.rglob("*") if path.suffix in (".json", ".png", ".npz", ".csv")]) == 1


def test_a_resumed_fit_refuses_metrics_of_others(trained, fit_flags, vocseg, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(trained / "checkpoints", project / "checkpoints")
    write_text(project / "metrics.csv", "date,score\n")
    checkpoint = ["--ckpt_path", project / "checkpoints" / "last.ckpt"]
    assert_refused(vocseg(*fit_flags, *checkpoint), "project/metrics.csv", "Move it away")
    assert (project / "metrics.csv").read_text() == "date,score\n"


def test_a_new_fit_refuses_a_folder_with_checkpoints_of_another_run(fit_flags, vocseg, tmp_path):
    flags = ["--checkpoint.dirpath", "ck", "--trainer.max_epochs"]
    assert vocseg(*fit_flags, *flags, 1, "--name", "first")[0] == 0
    before = contents(tmp_path / "ck")
    assert_refused(vocseg(*fit_flags, *flags, 1, "--name", "second"), "ck/best.ckpt is of another run")
    assert contents(tmp_path / "ck") == before
    status, _, err = vocseg(*fit_flags, *flags, 2, "--name", "first", "--ckpt_path", "last")
    assert status == 0, err


def test_a_second_test_deletes_only_its_own_masks(trained, vocseg, tmp_path):
    run = shutil.copytree(trained, tmp_path / "lightning_logs" / "x" / "version_0")
    words = ["test", "--ckpt_path", run / "checkpoints" / "best.ckpt", *QUIET]
    masks = run / "test_masks"
    write_text(masks / "mine.png", "mine")
    assert vocseg(*words)[0] == 0
    (masks / "test_0002.png").write_bytes(b"corrected")
    status, _, err = vocseg(*words, "--data.test_split", "val")
    assert (status, err) == (0, "")
    assert {path.name for path in masks.glob("test_*")} == {"test_0002.png"}
    assert len(list(masks.glob("val_*.png"))) == 5
    assert (masks / "mine.png").read_text() == "mine"
    assert_refused(vocseg(*words), "test_masks/test_0002.png was changed")


def test_a_report_refuses_files_of_others(vocseg, tmp_path):
    file = "report.html"
    write_text(tmp_path / "site" / file, "mine")
    words = ["report", RESULTS / "residual", "--to"]
    assert_refused(vocseg(*words, "site"), f"site/{file}", "--to")
    assert contents(tmp_path / "site") == {tmp_path / "site" / file: b"mine"}
    for _ in range(2):
        assert vocseg(*words, "other")[0] == 0
    (tmp_path / "other" / file).write_bytes(b"annotated")
    assert_refused(vocseg(*words, "other"), f"other/{file} was changed")


def test_tables_refuse_files_of_others(tmp_path):
    write_text(tmp_path / "paper" / "table_1.csv", "mine")
    with pytest.raises(VocsegError, match=r"table_1.csv exists.* --to"):
        write_tables(RESULTS, tmp_path / "paper")
    assert contents(tmp_path / "paper") == {tmp_path / "paper" / "table_1.csv": b"mine"}
    for _ in range(2):
        write_tables(RESULTS, tmp_path / "other")
    assert (tmp_path / "other" / "table_1.csv").is_file()


def test_tables_keep_a_document_whose_end_mark_is_gone(tmp_path):
    (tmp_path / "results").symlink_to(RESULTS)
    document = tmp_path / "RESULTS.md"
    document.write_text(f"before\n{BEGIN}\nold\nafter")
    problems = write_tables(tmp_path / "results", tmp_path / "paper")
    assert document.read_text() == f"before\n{BEGIN}\nold\nafter"
    assert any(END in problem for problem in problems)
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter")
    write_tables(tmp_path / "results", tmp_path / "paper")
    assert document.read_text().endswith(f"{END}\nafter")


@pytest.mark.parametrize("files", [["notes.txt"], ["record.json", "notes.txt"], ["config.yaml"]])
def test_a_record_does_not_take_the_place_of_another_folder(files, tmp_path):
    for name in files:
        write_text(tmp_path / "row" / name, "mine")
    with pytest.raises(VocsegError, match=f"{files[-1]} is not part of a record.* Move .*row away"):
        write_record(tmp_path / "row", RunFolder(tmp_path), {}, {}, {}, [])
    assert {path.name for path in (tmp_path / "row").iterdir()} == set(files)


def owned(folder, rank=0):
    return OwnedFolder(folder, "predict", "Advice.", rank)


def test_each_process_knows_the_files_of_all(tmp_path):
    write_text(tmp_path / "a", "by 0", owned(tmp_path).write)
    write_text(tmp_path / "b", "by 1", owned(tmp_path, 1).write)
    owned(tmp_path).check([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(VocsegError, match=r"a exists .*\(and 1 more\). Advice.$"):
        OwnedFolder(tmp_path, "report", "Advice.").check([tmp_path / "a", tmp_path / "b"])


def test_a_file_is_own_after_a_kill_before_and_after_it_was_replaced(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    write_text(tmp_path / "a", "first", owned(tmp_path).write)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "a", "second", owned(tmp_path).write)
    owned(tmp_path).check([tmp_path / "a"])
    record = next(tmp_path.glob(".vocseg_*"))
    record.write_text(record.read_text() + '\n["b", "12')  # killed while it was writing the record
    write_text(tmp_path / "b", "third", owned(tmp_path).write)
    owned(tmp_path).check([tmp_path / "a", tmp_path / "b"])


def test_write_refuses_what_was_not_checked(tmp_path):
    write_text(tmp_path / "a", "mine")
    with pytest.raises(VocsegError, match="a exists"):
        write_text(tmp_path / "a", "other", owned(tmp_path).write)
    assert (tmp_path / "a").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["x" * 251 + ".png", "鷹" * 83 + ".png", "a b\n%s'.png", "ü.png", os.fsdecode(b"\xff.png")]
)
def test_unusual_names_are_written_and_known(name, tmp_path):
    for text in ("first", "second"):
        write_text(tmp_path / name, text, owned(tmp_path).write)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".png"] == [name]
    write_atomically(tmp_path / name, lambda file: file.write(b"mine"))
    with pytest.raises(VocsegError, match="was changed"):
        owned(tmp_path).check([tmp_path / name])


def test_names_are_distinct():
    paths = [Path(name) for name in ("one/a.jpg", "two/a.jpg", "one/a.png", "one/a.png")]
    assert list(unique_names([("one/a", paths[0]), ("two/a", paths[1]), ("one/a", paths[2])]).values()) == [
        *("one/a", "two/a", "one/a.png")
    ]
    samples = [type("Sample", (), {"image": path, "name": ""}) for path in paths]
    assert sample_names(samples) == ["a", "a.jpg", "a.png", "a.png"]
    unsafe = [type("Sample", (), {"image": Path("a.jpg"), "name": name}) for name in ("/etc/a", "../a")]
    assert [sample_names([sample]) for sample in unsafe] == [["a"], ["a"]]


def test_many_files_of_one_name_take_one_number_each(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vocseg.saving.count", lambda start: map(lambda number: drawn.append(number) or number, count(start))
    )
    names = unique_names([("a", Path(f"{folder}/a.jpg")) for folder in range(300)] + [("b", Path("a_2.jpg"))])
    assert list(names.values()) == ["a", "a.jpg", *(f"a_{number}" for number in range(2, 300)), "b"]
    assert len(drawn) == 298  # not all smaller numbers again for each file
