"""The paper's rows on drawn scenes: what is declared, what is run, and what survives an interruption."""

import csv
import os
import signal
import subprocess
import sys
import time

import pytest

from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.experiments import resolve_config
from vocseg.lightning_cli import VocsegCLI, run
from vocseg.paper.records import read_record
from vocseg.paper.rows import declared

ROWS = declared().rows


def options(voc_root, epochs=1):
    return [
        *("--data.root", str(voc_root), "--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]"),
        *("--data.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4"),
        *("--trainer.max_epochs", str(epochs), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


class Instantiated(VocsegCLI):
    """Stops before training."""

    def fit(self, **kwargs):
        pass

    def after_fit(self):
        pass


@pytest.mark.parametrize("name", [name for name in ROWS if name != "unet"])  # which takes long to initialise
def test_every_row_makes_the_run_that_it_declares(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = ROWS[name]
    cli = run(["fit", *row.fit_options()], Instantiated)
    settings = cli.config["fit"]
    assert settings.name == name
    assert settings.model.optimizer.init_args.lr == row.lr
    assert settings.model.optimizer.init_args.weight_decay == row.weight_decay
    assert settings.model.decoder.init_args.activation == row.activation
    assert (cli.trainer.max_epochs, settings.seed_everything) == (row.epochs, row.seed)
    assert resolve_config(row.experiment)


def test_tables_1_to_5_train_equally_long_and_have_the_papers_figures():
    rows = [row for row in ROWS.values() if row.table <= 5]
    assert len(rows) == 14
    assert len({row.epochs for row in rows}) == 1
    assert all(len(row.paper) == 4 for row in rows)


def test_rows_leave_records_and_are_not_run_again(vocseg, voc_root, tmp_path):
    status, out, err = vocseg("rows", "focal_leaky", "baseline_leaky", "--results", "res", *options(voc_root, 2))
    assert (status, err) == (0, "")
    record = read_record(tmp_path / "res" / "focal_leaky")
    assert record.facts["row"] == "focal_leaky"
    assert (record.facts["epochs"], record.facts["seed"], len(record.lines)) == (2, 0, 2)
    assert {"commit", "device", "precision", "versions", "minutes", "best_epoch"} <= set(record.facts)
    assert record.facts["val"]["miou"] == pytest.approx(max(line["val/miou"] for line in record.lines), abs=1e-6)
    assert record.matrices["test"].shape == (4, 8, 7)
    assert record.config["model"]["loss"]["class_path"].endswith("FocalLoss")
    assert str(voc_root) not in (tmp_path / "res" / "focal_leaky" / "config.yaml").read_text()
    assert set(record.masks()) <= {f"test_{number:04}" for number in range(4)}
    assert sum(path.stat().st_size for path in record.folder.rglob("*")) < 200_000

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "res").rglob("*")}
    status, out, _ = vocseg("rows", "focal_leaky", "baseline_leaky", "--results", "res", *options(voc_root, 2))
    assert status == 0
    assert out.count("not run again") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "res").rglob("*")}


def test_one_failing_row_does_not_stop_the_rest(vocseg, voc_root, tmp_path):
    weights = ["--model.backbone.weights", tmp_path / "none.pth"]  # which only the transfer networks have a place for
    status, out, err = vocseg("rows", "baseline_leaky", "transfer", "--results", "res", *options(voc_root), *weights)
    assert status == 1
    assert "baseline_leaky failed: " in out
    assert "transfer failed: " in out
    assert "none.pth" in out
    assert "These rows failed, for the reasons above: baseline_leaky, transfer." in err
    status, out, err = vocseg("rows", "baseline_leaky", "--results", "res", *options(voc_root))
    assert status == 0


def test_an_unknown_row_names_the_nearest(vocseg):
    status, _, err = vocseg("rows", "basline_leaky")
    assert status == 1
    assert "There is no row 'basline_leaky'. Did you mean 'baseline_leaky'?" in err


def test_a_half_written_record_is_run_anew(vocseg, voc_root, tmp_path):
    (tmp_path / "res" / "residual").mkdir(parents=True)
    (tmp_path / "res" / "residual" / "record.json").write_text("{")
    status, out, _ = vocseg("rows", "residual", "--results", "res", *options(voc_root))
    assert status == 0
    assert "Run anew" in out
    assert read_record(tmp_path / "res" / "residual").facts["epochs"] == 1


def test_a_killed_row_goes_on_where_it_was(vocseg, voc_root, tmp_path):
    """Killed after its second epoch, it keeps its first epochs' lines, its folder, and its best checkpoint's score."""
    flags = ["rows", "baseline_leaky", "--results", "res", *options(voc_root, 40)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vocseg", *flags], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "lightning_logs" / "baseline_leaky" / "version_0"
    try:
        deadline = time.monotonic() + 120
        while lines_of(folder) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    done = lines_of(folder)
    assert 2 <= done < 40
    assert not (tmp_path / "res" / "baseline_leaky").exists()
    before = (folder / "metrics.csv").read_text().splitlines()

    flags[flags.index("40")] = str(done + 2)
    status, out, _ = vocseg(*flags)
    assert status == 0
    assert "Going on from" in out
    assert os.listdir(folder.parent) == ["version_0"]
    record = read_record(tmp_path / "res" / "baseline_leaky")
    assert [line["epoch"] for line in record.lines] == list(range(done + 2))
    after = (folder / "metrics.csv").read_text().splitlines()
    assert after[1:done] == before[1:done]  # the epoch that ended last may have been killed before its checkpoint
    assert record.facts["val"]["miou"] == pytest.approx(max(line["val/miou"] for line in record.lines), abs=1e-6)


def lines_of(folder):
    path = folder / "metrics.csv"
    if not path.exists():
        return 0
    with path.open() as file:
        return len(list(csv.DictReader(file)))


def test_the_listed_unet_row_accumulates_to_batches_of_16():
    options = ROWS["unet"].options
    assert options["data.batch_size"] * options["trainer.accumulate_grad_batches"] == 16
    assert ROWS["unet"].fit_options()[:2] == ["--config", "unet"]
