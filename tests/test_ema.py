"""fit --ema: what averaged weights are, where they are used, and what resumed runs make of them."""

import signal

import lightning as L
import pytest
import torch
from torch import nn

from vocseg import SegmentationTask, VocsegError
from vocseg.callbacks import WeightEMA
from vocseg.checkpoints import read_checkpoint

SMALL = ["--data.batch_size", 2, "--previews.images", 0, "--model.schedule.kind", "constant", "--trainer.max_epochs", 2]
EMA = ["--ema", 0.9]

SPIES = """
import os, signal
import lightning as L
import torch

class Stop(L.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGINT)

class Weights(L.Callback):
    steps, validated = [], None

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if not trainer.sanity_checking:
            type(self).validated = {name: value.clone() for name, value in pl_module.state_dict().items()}
"""


@pytest.fixture
def fit(fit_flags, vocseg, tmp_path, monkeypatch):
    """Fits into a folder of its own; returns (exit status, stderr, the last checkpoint)."""
    (tmp_path / "spies.py").write_text(SPIES)
    monkeypatch.syspath_prepend(tmp_path)

    def call(folder, *options):
        try:
            status, _, err = vocseg(*fit_flags, *SMALL, "--trainer.default_root_dir", tmp_path / folder, *options)
        except SystemExit as end:
            status, err = end.code, ""
        last = tmp_path / folder / "lightning_logs/quickstart/version_0/checkpoints/last.ckpt"
        return status, err, last

    return call


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in {**first, **second})


def test_the_average_is_what_validation_scores_and_what_checkpoints_hold(fit):
    import spies

    spies.Weights.steps = []
    status, err, path = fit("run", *EMA, "--trainer.callbacks", "spies.Weights", "--trainer.max_epochs", 1)
    assert status == 0, err
    expected = dict(spies.Weights.steps[0])
    for step, weights in enumerate(spies.Weights.steps[1:], 1):
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in weights.items():
            floating = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if floating else value
    last, best = read_checkpoint(path), read_checkpoint(path.with_name("best.ckpt"))
    assert len(spies.Weights.steps) == 5
    assert all(torch.allclose(last["state_dict"][name], expected[name], atol=1e-6) for name in expected)
    assert any(name.endswith("num_batches_tracked") and expected[name] == 5 for name in expected)
    assert equal(last["current_model_state"], spies.Weights.steps[-1])
    assert equal(spies.Weights.validated, last["state_dict"])
    assert equal(best["state_dict"], last["state_dict"])
    assert equal(SegmentationTask.load_from_checkpoint(path).state_dict(), last["state_dict"])


@pytest.mark.parametrize("options", [[], ["--trainer.limit_val_batches", 0]])
def test_a_resumed_run_equals_an_uninterrupted_one(options, fit):
    """Between two epochs and inside one; with validation after each epoch and without any."""
    status, err, whole = fit("whole", *EMA, *options)
    assert status == 0, err
    assert fit("epochs", *EMA, *options, "--trainer.max_epochs", 1)[0] == 0
    assert fit("inside", *EMA, *options, "--trainer.callbacks", "spies.Stop")[0] == 128 + signal.SIGINT
    expected = read_checkpoint(whole)
    assert not equal(expected["state_dict"], expected["current_model_state"])
    for folder in ("epochs", "inside"):
        status, err, path = fit(folder, *EMA, *options, "--ckpt_path", "last")
        assert status == 0, err
        resumed = read_checkpoint(path)
        for part in ("state_dict", "current_model_state", "averaging_state"):
            assert equal(expected[part], resumed[part]), (folder, part)


def test_a_run_resumed_with_the_option_changed(fit):
    fit("averaged", *EMA, "--trainer.max_epochs", 1)
    status, err, _ = fit("averaged", "--ckpt_path", "last")
    assert status == 1
    assert "averages: resume it with --ema" in err
    assert len(err.strip().splitlines()) <= 2
    fit("plain", "--trainer.max_epochs", 1)
    with pytest.warns(UserWarning, match="not created with WeightAveraging"):
        status, err, path = fit("plain", *EMA, "--ckpt_path", "last")
    assert status == 0, err
    assert int(read_checkpoint(path)["averaging_state"]["n_averaged"]) == 5  # those of the second epoch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ema", 1], "between 0 and 1"),
        (["--ema", 0], "between 0 and 1"),
        ([*EMA, "--checkpoint.save_weights_only", "true"], "save_weights_only"),
        ([*EMA, "--trainer.precision", "bf16-true"], "use bf16-mixed"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message, fit):
    status, err, _ = fit("run", *options)
    assert status == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_lightnings_learning_rate_finder_works_beside_it(fit):
    finder = ["--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps", 5]
    assert fit("run", *EMA, *finder, "--trainer.max_epochs", 1)[0] == 0


def test_any_module_after_the_fit_has_the_average():
    class Line(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            self.register_buffer("seen", torch.tensor([True]))
            self.values = []

        def training_step(self, batch, batch_idx):
            return self.layer(batch).sum()

        def on_train_batch_end(self, *args):
            self.values.append(self.layer.weight.item())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    line, options = Line(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[WeightEMA(0.1)], **options)
    trainer.fit(line, torch.utils.data.DataLoader(torch.ones(2, 1)))
    assert line.layer.weight.item() == pytest.approx(0.1 * line.values[0] + 0.9 * line.values[1])


def test_decays_outside_the_interval_are_refused():
    with pytest.raises(VocsegError, match=r"got 1\.5"):
        WeightEMA(1.5)
