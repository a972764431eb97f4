"""Runs that are interrupted, and runs whose loss or parameters become NaN."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from vocseg.callbacks import StepSeeds

# Callbacks that send the process a signal at a given batch, as a user or a scheduler would, or break the training.
STOPPER = """
import os
import lightning as L

class Stopper(L.Callback):
    def __init__(self, epoch, batch, number):
        self.epoch, self.batch, self.number = epoch, batch, number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            os.kill(os.getpid(), self.number)

class NaNImage(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            batch["image"][0, 0, 0, 0] = float("nan")

class InfiniteParameter(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and trainer.is_last_batch:
            next(pl_module.parameters()).data[0] = float("inf")
"""
RANDOM = ["--model.schedule.kind", "cosine", "--data.train_transforms", "crop", "--model.decoder.dropout", "0.2"]

SMALL = ["--data.batch_size", "2", "--trainer.max_epochs", "3", "--previews.images", "0", *RANDOM]


@pytest.fixture(scope="module")
def uninterrupted(fit_flags, succeed_in, tmp_path_factory):
    """The final state of a run that was not interrupted, without worker processes."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    succeed_in(folder, [*fit_flags, *SMALL])
    return state_of(folder)


@pytest.fixture
def fit(fit_flags, vocseg, tmp_path, monkeypatch):
    """Fits three epochs of five batches into a folder of its own; returns (exit status, stdout, stderr)."""
    (tmp_path / "stopper.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)

    def call(folder, *options):
        words = [*fit_flags, *SMALL, "--trainer.default_root_dir", folder, *options]
        try:
            return vocseg(*words)
        except SystemExit as end:
            return end.code, "", ""

    return call


def signal_at(epoch, batch, number=signal.SIGINT):
    stopper = {"class_path": "stopper.Stopper", "init_args": {"epoch": epoch, "batch": batch, "number": int(number)}}
    return ["--trainer.callbacks", f"[{stopper}]".replace("'", '"')]


def run_folder(folder, version=0):
    return folder / "lightning_logs" / "quickstart" / f"version_{version}"


def state_of(folder):
    """Everything that must be equal: the network, the optimizer, the schedule, and every scalar logged."""
    checkpoint = torch.load(run_folder(folder) / "checkpoints" / "last.ckpt", weights_only=True)
    with (run_folder(folder) / "metrics.csv").open() as file:
        lines = [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "lr_schedulers")}, lines


def differences(first, second, path=""):
    if isinstance(first, dict):
        assert first.keys() == second.keys(), path
        return [found for key in first for found in differences(first[key], second[key], f"{path}/{key}")]
    if isinstance(first, list | tuple):
        assert len(first) == len(second), path
        pairs = zip(first, second, strict=True)
        return [found for n, pair in enumerate(pairs) for found in differences(*pair, f"{path}/{n}")]
    same = torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second
    return [] if same else [path]


@pytest.mark.parametrize(
    ("workers", "epoch", "batch"),
    [(0, 1, 1), (2, 1, 1), (2, 0, 4)],
    ids=["mid-epoch", "mid-epoch, workers", "end of epoch, workers"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(workers, epoch, batch, uninterrupted, fit, tmp_path):
    """Whatever the number of worker processes."""
    options = ["--data.num_workers", workers]
    assert fit(tmp_path, *options, *signal_at(epoch, batch))[0] == 130
    interrupted = torch.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert interrupted["global_step"] == epoch * 5 + batch + 1
    assert interrupted["vocseg"]["finished_epochs"] == epoch + (batch == 4)
    assert fit(tmp_path, *options, "--ckpt_path", "last")[0] == 0
    assert not run_folder(tmp_path, 1).exists()
    resumed = state_of(tmp_path)
    assert differences(uninterrupted[0], resumed[0]) == []
    assert len(uninterrupted[1]) == 3
    assert uninterrupted[1] == resumed[1]


def test_an_epoch_that_max_steps_ended_early_can_be_resumed(fit, tmp_path):
    assert fit(tmp_path, "--trainer.max_steps", "4")[0] == 0
    assert [line["step"] for line in state_of(tmp_path)[1]] == ["4"]
    assert fit(tmp_path, "--ckpt_path", "last", "--trainer.max_steps", "7")[0] == 0
    assert [(line["epoch"], line["step"]) for line in state_of(tmp_path)[1]] == [("0", "5"), ("1", "7")]


def test_a_run_that_early_stopping_ended_is_finished(fit, tmp_path):
    stopping = {"monitor": "train/loss", "mode": "max", "patience": 1, "min_delta": 1000}
    callback = {"class_path": "EarlyStopping", "init_args": {**stopping, "check_on_train_epoch_end": True}}
    options = ["--trainer.callbacks", json.dumps([callback])]
    assert fit(tmp_path, *options)[0] == 0
    assert [line["epoch"] for line in state_of(tmp_path)[1]] == ["0", "1"]  # of three
    status, _, err = fit(tmp_path, *options, "--ckpt_path", "last")
    assert status == 1
    assert "Every run 'quickstart'" in err


def test_settings_changed_on_resuming_take_effect_and_are_saved(fit, tmp_path):
    optimizer = ["--model.optimizer.lr", "0", "--model.optimizer.weight_decay", "0.1"]
    assert fit(tmp_path, "--trainer.max_epochs", "1")[0] == 0
    before = torch.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    resume = ["--ckpt_path", "last", *optimizer]
    status, _, err = fit(tmp_path, *resume, "--trainer.max_epochs", "2")
    assert status == 0
    assert "config_1.yaml: trainer.max_epochs 1 -> 2, model.optimizer.lr 0.003 -> 0.0, " in err
    assert fit(tmp_path, *resume, "--trainer.max_epochs", "3")[0] == 0
    assert fit(tmp_path, "--ckpt_path", run_folder(tmp_path) / "checkpoints" / "last.ckpt", *optimizer)[0] == 0
    after = torch.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    kept = [name for name in before if "running_" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after["state_dict"][name]) for name in kept)
    assert {group["weight_decay"] for group in after["optimizer_states"][0]["param_groups"]} == {0.1}
    rates = [float(line["lr-AdamW/backbone"]) for line in state_of(tmp_path)[1]]
    assert rates[0] > 0
    assert rates[1:] == [0, 0]
    written = sorted(path.name for path in run_folder(tmp_path).glob("*.yaml"))
    assert written == ["config.yaml", "config_1.yaml", "config_2.yaml", "hparams.yaml"]  # the last one changed nothing


def test_a_resumed_run_cannot_train_other_parameters(fit, tmp_path):
    backbone = [
        "--model.backbone",
        "MobileNetV2",
        "--model.backbone.weights",
        "null",
        "--trainer.limit_val_batches",
        "1",
    ]
    assert fit(tmp_path, *backbone, "--trainer.max_epochs", "1")[0] == 0
    status, _, err = fit(tmp_path, *backbone, "--ckpt_path", "last", "--model.backbone.freeze", "true")
    assert status == 1
    assert re.search(r"training other parameters \(backbone \d+, decoder (\d+)\) than .* \(decoder \1\)", err)


def test_a_resumed_run_cannot_use_another_optimizer(fit, tmp_path):
    assert fit(tmp_path, "--trainer.max_epochs", "1")[0] == 0
    status, _, err = fit(tmp_path, "--ckpt_path", "last", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1")
    assert status == 1
    assert "trained with torch.optim.AdamW, but the configured optimizer is torch.optim.SGD" in err


def test_the_comparison_detects_a_draw_that_does_not_depend_on_the_seed(uninterrupted, fit, tmp_path, monkeypatch):
    monkeypatch.setattr(StepSeeds, "on_train_batch_start", lambda *args: torch.seed())
    assert fit(tmp_path)[0] == 0
    assert differences(uninterrupted[0], state_of(tmp_path)[0])


def test_sigterm_saves_and_prints_how_to_resume(fit, tmp_path, capsys):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert fit(tmp_path, *signal_at(0, 2, signal.SIGTERM))[0] == 143
    err = capsys.readouterr().err
    assert "Saved in epoch 1, after step 3. To resume: vocseg fit --config quickstart" in err
    assert "--ckpt_path last" in err
    assert "Traceback" not in err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_ctrl_c_exits_at_once(fit, tmp_path):
    twice = signal_at(1, 2)[1].strip("[]")
    assert fit(tmp_path, "--trainer.callbacks", f"[{twice}, {twice}]")[0] != 0
    last = torch.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 5  # of the previous epoch


def test_a_signal_to_all_processes_of_a_run_does_not_end_its_workers_early(fit_flags, tmp_path):
    """As a terminal's Ctrl-C and a scheduler send it."""
    words = [*fit_flags, "--data.num_workers", "2", "--trainer.max_epochs", "500", "--previews.images", "0"]
    command = [sys.executable, "-m", "vocseg", *words]
    settings = {"cwd": tmp_path, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, **settings) as process:
        last, deadline = run_folder(tmp_path) / "checkpoints" / "last.ckpt", time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Saved " in err
    assert "Traceback" not in err


def test_a_nan_loss_ends_the_run_and_names_the_images_of_its_batch(fit, tmp_path):
    status, _, err = fit(tmp_path, "--trainer.callbacks", "stopper.NaNImage")
    assert status == 1
    assert "loss is nan in step 8 (epoch 1, batch 2). Its images: train_" in err
    last = run_folder(tmp_path) / "checkpoints" / "last.ckpt"
    assert f"The last good checkpoint: {last}" in err
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 5
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_a_network_that_becomes_infinite_in_the_last_step_of_an_epoch_is_not_saved(fit, tmp_path):
    """No loss was computed with these parameters yet."""
    options = ["--trainer.callbacks", "stopper.InfiniteParameter", "--trainer.limit_val_batches", "0"]
    status, _, err = fit(tmp_path, *options)
    assert status == 1
    assert "parameters are nan or infinite after step 10" in err
    assert torch.load(run_folder(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_last_without_an_unfinished_run_is_an_error(fit, tmp_path):
    status, _, err = fit(tmp_path, "--ckpt_path", "last")
    assert status == 1
    assert "nothing to resume: no run 'quickstart'" in err
    assert fit(tmp_path, "--trainer.max_epochs", "1")[0] == 0
    status, _, err = fit(tmp_path, "--ckpt_path=last", "--trainer.max_epochs", "1")
    assert status == 1
    assert "Every run 'quickstart'" in err
    assert fit(tmp_path, "--ckpt_path=last", "--trainer.max_epochs", "2")[0] == 0
    assert len(state_of(tmp_path)[1]) == 2
    assert os.listdir(tmp_path / "lightning_logs" / "quickstart") == ["version_0"]
