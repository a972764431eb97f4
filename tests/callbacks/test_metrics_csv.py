import os
import shutil

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from vocseg import SegmentationTask, SkipDecoder, StridedEncoder, VocsegError
from vocseg.callbacks import MetricsCSV
from vocseg.run_folder import append_line, read_lines, write_lines


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


def test_checkpoints_do_not_grow_with_the_lines(tmp_path):
    fit(tmp_path, 3)
    state = torch.load(tmp_path / "last.ckpt", weights_only=False)["callbacks"]["MetricsCSV"]
    assert set(state) == {"rates", "seconds"}


def test_resuming_an_earlier_checkpoint_drops_the_later_lines(tmp_path):
    before = fit(tmp_path, 2)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "earlier.ckpt")
    fit(tmp_path, 4, ckpt_path=tmp_path / "last.ckpt")
    after = fit(tmp_path, 3, ckpt_path=tmp_path / "earlier.ckpt")
    assert after[:2] == before
    assert [line["epoch"] for line in after] == [0, 1, 2]


def test_a_line_that_a_kill_cut_off_is_written_again(tmp_path):
    before = fit(tmp_path, 2)
    with (tmp_path / "a" / "b" / "metrics.csv").open("a") as file:
        file.write("2,6,0.1")
    assert read_lines(tmp_path / "a" / "b" / "metrics.csv") == before
    after = fit(tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")
    assert after[:2] == before
    assert [line["epoch"] for line in after] == [0, 1, 2]


def test_a_new_run_from_another_ones_checkpoint_begins_with_the_other_ones_lines(tmp_path):
    before = fit(tmp_path, 2)
    (tmp_path / "a" / "b" / "checkpoints").mkdir()
    checkpoint = shutil.move(tmp_path / "last.ckpt", tmp_path / "a" / "b" / "checkpoints" / "last.ckpt")
    after = fit(tmp_path / "new", 3, ckpt_path=checkpoint)
    assert after[:2] == before
    assert [line["epoch"] for line in after] == [0, 1, 2]


def test_the_lines_in_a_checkpoint_of_an_older_version_are_taken(tmp_path):
    before = fit(tmp_path, 2)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=False)
    checkpoint["callbacks"]["MetricsCSV"]["lines"] = before
    torch.save(checkpoint, tmp_path / "last.ckpt")
    (tmp_path / "a" / "b" / "metrics.csv").unlink()
    assert fit(tmp_path, 3, ckpt_path=tmp_path / "last.ckpt")[:2] == before


def test_a_broken_file_of_a_resumed_run_is_told_before_training(tmp_path):
    fit(tmp_path, 1)
    path = tmp_path / "a" / "b" / "metrics.csv"
    path.write_text(path.read_text() + "1,high\n")
    with pytest.raises(VocsegError, match=r"metrics.csv cannot be read .*'high'"):
        fit(tmp_path, 2, ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("name", ["lr-new", "a"])
def test_only_a_new_column_writes_the_file_again(tmp_path, name):
    path, lines = tmp_path / "metrics.csv", [{"epoch": 0.0, "step": 3.0, "seconds": 1.5, "a": 0.25}]
    write_lines(path, lines)
    file = os.stat(path).st_ino
    with path.open() as before:  # keeps the inode in use, so that a new file has another one
        append_line(path, {"epoch": 1.0, "step": 6.0, name: 2.0})
        assert (os.stat(path).st_ino == file) == (name == "a")
        assert before.readline()
    assert read_lines(path) == [*lines, {"epoch": 1.0, "step": 6.0, name: 2.0}]


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
