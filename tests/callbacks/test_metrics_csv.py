import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder
from vocseg.callbacks import MetricsCSV
from vocseg.run_folder import read_lines, write_lines


def fit(folder, epochs, ckpt_path=None):
    task = SegmentationTask(StridedEncoder(widths=(4,)), SkipDecoder, ["background", "a"])
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 2, (4, 8, 8), generator=generator)
    loader = DataLoader(TensorDataset(torch.rand(4, 3, 8, 8, generator=generator), masks), batch_size=2)
    trainer = L.Trainer(
        default_root_dir=folder,
        logger=L.pytorch.loggers.TensorBoardLogger(folder, name="a", version="b"),
        callbacks=[MetricsCSV(), L.pytorch.callbacks.ModelCheckpoint(folder, "last", save_on_train_epoch_end=True)],
        max_epochs=epochs,
        check_val_every_n_epoch=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(task, loader, loader, ckpt_path=ckpt_path)
    return read_lines(folder / "a" / "b" / "metrics.csv")


def test_one_line_per_epoch_without_scores_of_an_earlier_validation(tmp_path):
    lines = fit(tmp_path, 4)
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert ["val/miou" in line for line in lines] == [False, True, False, True]
    assert all({"train/loss", "seconds", "step"} <= set(line) for line in lines)
    assert len({line["train/loss"] for line in lines}) == 4


def test_a_resumed_run_keeps_its_earlier_lines(tmp_path):
    before = fit(tmp_path, 2)
    after = fit(tmp_path, 4, ckpt_path=tmp_path / "last.ckpt")
    assert after[:2] == before
    assert [line["epoch"] for line in after] == [0, 1, 2, 3]


def test_lines_with_different_scalars_are_read_as_they_were_written(tmp_path):
    lines = [
        {"epoch": 0.0, "step": 3.0, "seconds": 1.5, "a": 0.25},
        {
            "epoch": 1.0,
            "step": 6.0,
            "seconds": 1.0,
        },
    ]
    write_lines(tmp_path / "metrics.csv", lines)
    assert read_lines(tmp_path / "metrics.csv") == lines
