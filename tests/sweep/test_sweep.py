"""Real sweeps: killed and resumed, with a failing run, and checked again."""

import contextlib
import fcntl
import io
import json
import os
import shutil

import numpy as np
import pytest
import yaml

from vocseg.cli import main
from vocseg.records import read_record
from vocseg.run_folder import read_lines
from vocseg.sweep.check import OUTSIDE, WITHIN, compare
from vocseg.sweep.plan import begin_runs, read_plan

KILLER = """
import os, signal
import lightning as L

class Killer(L.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not os.path.exists("spared"):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_reported_and_resumed(vocseg, short, tmp_path):
    """It runs in a process of its own, so that its death leaves the sweep alive."""
    (tmp_path / "killer.py").write_text(KILLER)
    words = ["sweep", "--config", "quickstart", "--seeds", "3", *short, "--trainer.callbacks+=killer.Killer"]
    status, out, err = vocseg(*words)
    assert status == 1
    assert "1 of 1 runs failed:\n  quickstart-seed_3: its process was killed (SIGKILL)" in err
    assert "quickstart-seed_3 failed: its process was killed" in out
    folder = tmp_path / "sweeps" / "quickstart"
    version = folder / "lightning_logs" / "quickstart-seed_3" / "version_0"
    assert "SIGKILL" in (folder / "index.html").read_text()
    assert len(read_lines(version / "metrics.csv")) == 1

    (tmp_path / "spared").touch()
    status, out, err = vocseg(*words, "--in_process")
    assert status == 0
    assert "Resuming from sweeps/quickstart/lightning_logs/quickstart-seed_3/version_0/checkpoints/last.ckpt" in err
    assert sorted(os.listdir(version.parent)) == ["settings.json", "version_0"]
    record = read_record(folder / "records" / "quickstart-seed_3", ["val"])
    assert [line["epoch"] for line in record.lines] == [0, 1]
    assert {"commit", "device", "precision", "versions", "minutes", "digest"} <= set(record.facts)
    assert (record.facts["seed"], record.facts["setting"]) == (3, "quickstart")
    assert len(record.scores["val"].matrices) == 5
    assert not (folder / "records" / "quickstart-seed_3" / "test.json").exists()  # the test split was not asked for
    assert "SIGKILL" not in (folder / "index.html").read_text()


@pytest.fixture(scope="module")
def pair(short, tmp_path_factory):
    """The folder of a sweep of a run that works and one that does not, its command, its status and what it printed."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "two.yaml").write_text(
        "runs: {good: quickstart, bad: {config: quickstart, set: {init_from: none.pth}}}\ntest: true\n"
        "set: {trainer.limit_val_batches: 1}\n"  # which a check must know, too
    )
    words = ["sweep", "two.yaml", "--in_process", *short]
    before, out, err = os.getcwd(), io.StringIO(), io.StringIO()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    finally:
        os.chdir(before)
    return folder, words, (status, out.getvalue(), err.getvalue())


def test_one_failing_run_stops_no_other_and_is_mended(pair, vocseg, monkeypatch):
    folder, words, (status, out, err) = pair
    monkeypatch.chdir(folder)
    records = folder / "sweeps" / "two" / "records"
    assert status == 1
    assert "1 of 2 runs failed:\n  bad-seed_0: " in err
    assert "none.pth" in err
    table = out[out.index("Sweep two: 2 settings x 1 seed") :]
    assert "good" in table and "bad" in table and "0 of 1" in table  # noqa: PT018
    assert (records / "good-seed_0" / "test.npz").is_file()
    before = (records / "good-seed_0" / "record.json").stat().st_mtime_ns

    (folder / "two.yaml").write_text(
        "runs: {good: quickstart, bad: quickstart}\ntest: true\nset: {trainer.limit_val_batches: 1}\n"
    )
    status, out, err = vocseg(*words)
    assert status == 0
    assert out.count("not run again") == 1
    assert before == (records / "good-seed_0" / "record.json").stat().st_mtime_ns
    assert sorted(path.name for path in records.iterdir()) == ["bad-seed_0", "good-seed_0"]

    status, _, err = vocseg(*words, "--set", "model.optimizer.lr=1")
    assert status == 1
    assert "good-seed_0 was made with other settings (model.optimizer.lr not set instead of 1)" in err


def test_an_unfinished_run_that_began_with_other_settings_is_not_resumed(tmp_path, capsys):
    plan = read_plan(configs=["quickstart"], folder=str(tmp_path / "sweep"))
    runs = plan.runs(plan.settings[0], 0)
    begin_runs(plan)
    (runs / "version_0" / "checkpoints").mkdir(parents=True)
    begin_runs(plan)  # the same settings: it stays
    assert (runs / "version_0").is_dir()
    other = read_plan(configs=["quickstart"], folder=str(tmp_path / "sweep"), sets=["data.batch_size=2"])
    begin_runs(other)
    assert "quickstart-seed_0 began with other settings. It starts anew" in capsys.readouterr().out
    assert (runs.parent / "quickstart-seed_0-before_1" / "version_0").is_dir()
    assert [path.name for path in runs.iterdir()] == ["settings.json"]


def test_two_sweeps_do_not_share_a_folder(vocseg, tmp_path):
    folder = tmp_path / "sweeps" / "quickstart"
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, err = vocseg("sweep", "--config", "quickstart")
    assert status == 1
    assert "A sweep is running in sweeps/quickstart" in err


def test_a_record_is_checked(pair, vocseg, short, tmp_path):
    record = shutil.copytree(pair[0] / "sweeps" / "two" / "records" / "good-seed_0", tmp_path / "good-seed_0")
    config = yaml.safe_load((record / "config.yaml").read_text())
    config["trainer"]["default_root_dir"] = "/path/to/sweep"  # as of a sweep whose --to is an absolute path
    (record / "config.yaml").write_text(yaml.safe_dump(config))
    check = ["sweep", "--check", str(record), "--in_process", "true"]
    status, _, err = vocseg(*check)
    assert status == 1
    assert "does not say where its files are. Give their paths: --data.root /path/to/root" in err
    assert "default_root_dir" not in err
    status, out, _ = vocseg(*check, *short[:2])
    assert status == 0
    assert "metrics.csv: all 2 epochs are equal" in out
    assert "all scores equal and the confusion matrix of each image" in out
    assert "good-seed_0: to the bit" in out
    checked = json.loads((tmp_path / "sweeps" / "check-good-seed_0" / "check.json").read_text())
    assert checked["verdict"] == "to the bit"


def test_a_check_of_no_record_leaves_nothing(vocseg, tmp_path):
    status, _, err = vocseg("sweep", "--check", "nosuch")
    assert (status, err) == (1, "vocseg: There is no record nosuch: --check takes its folder.\n")
    assert not (tmp_path / "sweeps").exists()


def test_a_check_tells_an_interval_from_a_failure(create_record, tmp_path):
    names = {"record": (0.7, 0), "again": (0.7, 1), "worse": (0.4, 1)}
    for name, (right, seed) in names.items():
        create_record(tmp_path / name, right, seed)
    record, again, worse = (read_record(tmp_path / name) for name in names)
    verdict, found = compare(record, again)
    assert verdict == WITHIN
    assert "inside its 95 % interval" in found[1]
    again.lines[1]["val/miou"] = 0.25
    again.lines[1]["seconds"] = 99
    assert "1 scalars differ from epoch 1 on (val/miou 0.2 in the record, 0.25 now)" in compare(record, again)[1][0]
    verdict, found = compare(record, worse)
    assert verdict == OUTSIDE
    assert "outside its 95 % interval" in found[2]
    assert np.isclose(record.scores["val"].summary["miou"], float(found[1].split()[2]), atol=1e-6)
