"""The paper's rows on synthetic images: declared, run, recorded, and resumed after an interruption."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.lightning_cli import VocsegCLI, run
from vocseg.paper.protocol import paper_inferred
from vocseg.paper.records import read_record
from vocseg.paper.rows import declared

ROWS = declared().rows
PAPER = Path(__file__).parents[2] / "experiments" / "paper"


def options(voc_root, epochs=1):
    return [
        *("--data.root", str(voc_root), "--data.class_names", f"[{','.join(SYNTHETIC_CLASSES)}]"),
        *("--data.image_size", "32", "--data.num_workers", "0", "--data.batch_size", "4"),
        *("--trainer.max_epochs", str(epochs), "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"),
    ]


class InstantiateOnly(VocsegCLI):
    """Does not train."""

    def fit(self, **kwargs):
        pass

    def after_fit(self):
        pass


@pytest.mark.parametrize("name", [name for name in ROWS if name != "unet"])  # whose weights take long to initialise
def test_each_row_gives_a_fit_the_settings_that_it_declares(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = ROWS[name]
    cli = run(["fit", *row.fit_options()], InstantiateOnly)
    settings, options = cli.config["fit"], row.options
    model = settings.model.init_args
    assert settings.name == name
    assert model.optimizer.init_args.lr == float(options["model.optimizer.lr"])
    assert model.optimizer.init_args.weight_decay == float(options["model.optimizer.weight_decay"])
    assert model.decoder.init_args.activation == options["model.decoder.activation"]
    assert model.backbone.init_args.get("activation") == options.get("model.backbone.activation")
    assert (cli.trainer.max_epochs, settings.seed_everything) == (int(options["trainer.max_epochs"]), row.seed)


@pytest.mark.parametrize(("file", "needing"), [("rows.yaml", False), ("rows_more.yaml", True)])
def test_the_rows_are_a_sweep(file, needing, vocseg):
    words = ["--data.root", "somewhere", "--seeds", "0", "1", "--dry_run", "true"]
    status, out, err = vocseg("sweep", PAPER / file, *words)
    assert (status, err) == (0, "")
    names = set(re.findall(r"--name (\S+)-seed_1 ", out))
    assert names == {name for name, row in ROWS.items() if bool(row.needs) == needing and not row.same_as}


def test_rows_of_tables_1_to_5_train_equally_long_and_have_the_papers_scores():
    rows = [row for row in ROWS.values() if row.table <= 5]
    assert len(rows) == 14
    assert {row.options["trainer.max_epochs"] for row in rows} == {"12"}
    assert all(len(row.paper) == 4 for row in rows)


def test_rows_write_records_and_are_not_run_again(vocseg, voc_root, tmp_path):
    words = ["paper", "rows", "focal_leaky", "baseline_leaky", "--results", "res", *options(voc_root, 2)]
    status, _, err = vocseg(*words)
    assert (status, err) == (0, "")
    record = read_record(tmp_path / "res" / "focal_leaky")
    assert record.facts["row"] == "focal_leaky"
    assert (record.facts["epochs"], record.facts["seed"], len(record.lines)) == (2, 0, 2)
    assert {"commit", "device", "precision", "versions", "minutes", "best_epoch"} <= set(record.facts)
    assert record.scores["val"].summary["miou"] == pytest.approx(best_miou(record), abs=1e-6)
    assert (len(record.scores["val"].matrices), len(record.scores["test"].matrices)) == (5, 4)
    assert record.scores["test"].resized.counts.sum() == 4 * 224 * 224
    assert record.class_names == list(SYNTHETIC_CLASSES)
    assert record.configs[0]["model"]["init_args"]["loss"]["class_path"].endswith("FocalLoss")
    assert str(voc_root) not in record.folder.config.read_text()
    masks = {path.stem for path in record.folder.test_masks.iterdir()}
    assert masks and masks <= {f"test_{number:04}" for number in range(4)}  # noqa: PT018
    assert sum(path.stat().st_size for path in record.folder.path.rglob("*")) < 200_000

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "res").rglob("*")}
    status, out, _ = vocseg(*words)
    assert status == 0
    assert out.count("not run again") == 2
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "res").rglob("*")}

    # the protocol is switched on in the run that is recorded, and its scores are those of the record
    callbacks = [callback["class_path"] for callback in record.configs[0]["trainer"]["callbacks"]]
    assert callbacks == ["vocseg.paper.protocol.PaperProtocol"]
    best = record.lines[record.best_epoch]
    inferred = paper_inferred(record.scores["val"].resized)
    assert best["val/paper_inferred/miou"] == pytest.approx(inferred["miou"], abs=1e-5)
    assert best["val/paper_inferred/pixel_accuracy"] == pytest.approx(inferred["pixel_accuracy"], abs=1e-5)


def best_miou(record):
    return max(line["val/miou"] for line in record.lines)


def test_one_failing_row_does_not_stop_the_rest(vocseg, voc_root, tmp_path):
    weights = ["--model.backbone.weights", tmp_path / "none.pth"]  # an option of the transfer networks only
    words = ["paper", "rows", "baseline_leaky", "transfer", "--results", "res"]
    status, out, err = vocseg(*words, *options(voc_root), *weights)
    assert status == 1
    assert "baseline_leaky failed: " in out
    assert "transfer failed: " in out
    assert "none.pth" in out
    assert "These rows failed, for the reasons above: baseline_leaky, transfer." in err
    assert not (tmp_path / "res").exists()


def test_an_unknown_row_names_the_nearest(vocseg):
    status, _, err = vocseg("paper", "rows", "basline_leaky")
    assert status == 1
    assert "There is no row 'basline_leaky'. Did you mean 'baseline_leaky'?" in err


def test_options_alone_are_of_every_row(vocseg, monkeypatch):
    asked = []
    monkeypatch.setattr("vocseg.paper.rows.run_jobs", lambda jobs, *rest: asked.extend(jobs) or {})
    assert vocseg("paper", "rows", "--data.root", "somewhere", "--results", "res")[0] == 0
    assert [job.name for job in asked] == [row.name for row in declared().rows.values() if not row.needs]
    assert all("--data.root somewhere" in " ".join(job.fit) for job in asked)
    assert asked[0].record == "res/baseline_leaky"


def test_a_row_with_an_incomplete_record_is_run_again(vocseg, voc_root, tmp_path):
    own = ["--trainer.callbacks", "lightning.pytorch.callbacks.LambdaCallback"]  # does not replace the protocol
    (tmp_path / "res" / "residual").mkdir(parents=True)
    (tmp_path / "res" / "residual" / "record.json").write_text("{")
    status, out, _ = vocseg("paper", "rows", "residual", "--results", "res", *options(voc_root), *own)
    assert status == 0
    assert "is incomplete: " in out
    assert "Run again" in out
    assert read_record(tmp_path / "res" / "residual").facts["epochs"] == 1


def test_a_killed_row_is_resumed(vocseg, voc_root, tmp_path):
    """It keeps its folder, the lines of its finished epochs, and the score of its best checkpoint.

    The run is found whichever way the folder of all runs is named.
    """
    common = ["paper", "rows", "baseline_leaky", "--results", "res"]
    flags = [*common, *options(voc_root, 40), "--trainer.default_root_dir", "runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vocseg", *flags], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = tmp_path / "runs" / "lightning_logs" / "baseline_leaky" / "version_0"
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

    status, _, err = vocseg(*common, *options(voc_root, done + 2), "--trainer.default_root_dir=runs")
    assert status == 0
    assert "Resuming from runs/lightning_logs/baseline_leaky/version_0/checkpoints/last.ckpt" in err
    assert os.listdir(folder.parent) == ["version_0"]
    assert not (tmp_path / "lightning_logs").exists()
    record = read_record(tmp_path / "res" / "baseline_leaky")
    assert [line["epoch"] for line in record.lines] == list(range(done + 2))
    after = (folder / "metrics.csv").read_text().splitlines()
    assert after[1:done] == before[1:done]  # the last epoch may have been killed before its checkpoint was written
    assert record.scores["val"].summary["miou"] == pytest.approx(best_miou(record), abs=1e-6)
    assert len(record.configs) == 2
    assert record.configs[1]["trainer"]["max_epochs"] == done + 2


def lines_of(folder):
    path = folder / "metrics.csv"
    if not path.exists():
        return 0
    with path.open() as file:
        return len(list(csv.DictReader(file)))


def test_the_unet_row_accumulates_gradients_over_16_images():
    options = ROWS["unet"].options
    assert int(options["data.batch_size"]) * int(options["trainer.accumulate_grad_batches"]) == 16
    assert ROWS["unet"].fit_options()[:2] == ["--config", "unet"]
