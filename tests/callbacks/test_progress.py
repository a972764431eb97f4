import lightning as L
import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder
from vocseg.callbacks import EpochBar, LineProgress, PartsSummary


class AtFitEnd(L.Callback):
    """Notes whether the bar is still drawn when the callbacks print their results."""

    def on_fit_end(self, trainer, pl_module):
        self.drawn = trainer.progress_bar_callback.progress.live.is_started
        self.metrics = trainer.progress_bar_callback.get_metrics(trainer, pl_module)


def fit(folder, callbacks, bar=True, freeze=False):
    task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, ["background", "a"])
    if freeze:
        task.network.backbone.requires_grad_(False)
    loader = DataLoader(TensorDataset(torch.rand(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long)), batch_size=2)
    trainer = L.Trainer(
        default_root_dir=folder,
        logger=L.pytorch.loggers.TensorBoardLogger(folder, name="a", version="b"),
        callbacks=callbacks,
        max_epochs=1,
        enable_progress_bar=bar,
        enable_checkpointing=False,
        accelerator="cpu",
    )
    trainer.fit(task, loader, loader)
    return task


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_counts_epochs_from_1_and_fits_into_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    console = Console(width=columns - len(" loss: 3.006 val/miou: 0.002"), record=True)
    progress = Progress(*EpochBar().configure_columns(None), console=console)
    progress.add_task("[white]Epoch 0/14", total=158, completed=158)
    progress.add_task("Validation", total=158)
    with console.capture() as capture:
        console.print(progress.get_renderable())
    first, second = capture.get().splitlines()
    assert first.startswith("Epoch 1/15 ")
    assert "158/158" in first
    assert second.startswith("Validation")


def test_the_bar_is_at_its_end_before_the_results_are_printed(tmp_path):
    at_end = AtFitEnd()
    fit(tmp_path, [EpochBar(), PartsSummary(), at_end])
    assert at_end.drawn is False
    assert "v_num" not in at_end.metrics
    assert "val/miou" in at_end.metrics


def test_the_summary_names_the_parts_with_trainable_and_frozen_parameters(tmp_path, capsys):
    task = fit(tmp_path, [PartsSummary(), LineProgress()], bar=False, freeze=True)
    out, err = capsys.readouterr()
    counts = [sum(p.numel() for p in part.parameters()) for part in (task.network.backbone, task.network.decoder)]
    rows = [line.split() for line in out.splitlines()]
    assert ["backbone", "StridedEncoder", "0", f"{counts[0]:,}"] in rows
    assert ["decoder", "SkipDecoder", f"{counts[1]:,}", "0"] in rows
    assert ["total", f"{counts[1]:,}", f"{counts[0]:,}"] in rows
    assert not [words for words in ("MeanMetric", "FLOPs", "train mode") if words in out + err]
    assert "Epoch 1/1  train/loss" in out


def test_the_summary_shows_the_submodules_of_another_module(capsys):
    class Own(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.one, self.lazy, self.none = torch.nn.Linear(2, 3), torch.nn.LazyLinear(2), torch.nn.ReLU()

    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    PartsSummary().on_fit_start(trainer, Own())
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["one", "Linear", "9", "0"] in rows
    assert not [row for row in rows if row and row[0] in ("lazy", "none")]
