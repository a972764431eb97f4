import logging

import lightning as L
import pytest
import torch

from vocseg import VOCDataModule, cores
from vocseg.callbacks import DivideCores
from vocseg.cores import available_cores, default_workers, limit_threads
from vocseg.data.synthetic import SYNTHETIC_CLASSES


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes a machine of so many cores, where nobody set a number of threads."""

    def make(count, limit=None, version=2):
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
        monkeypatch.setattr(cores, "CGROUP", tmp_path)
        if version == 1 and limit:
            (tmp_path / "cpu").mkdir()
            for name, text in zip(("quota", "period"), limit.split(), strict=True):
                (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(f"{text}\n")
        elif limit:
            (tmp_path / "cpu.max").write_text(f"{limit}\n")
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    yield make
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("limit", "version", "expected"),
    [
        *((None, 2, 8), ("max 100000", 2, 8), ("200000 100000", 2, 2), ("150000 100000", 2, 2), ("0 0", 2, 8)),
        *(("5000000 100000", 2, 8), ("not numbers", 2, 8), ("400000 100000", 1, 4), ("-1 100000", 1, 8)),
    ],
)
def test_cores_are_those_that_the_container_may_use(limit, version, expected, machine):
    machine(8, limit, version)
    assert available_cores() == expected


@pytest.mark.parametrize(
    ("count", "processes", "workers", "threads"),
    [
        (1, 1, 0, 1),
        (2, 1, 1, 1),
        (4, 1, 1, 3),
        (8, 1, 2, 6),
        (16, 1, 4, 12),
        (64, 1, 8, 56),
        (4, 2, 1, 1),
        (2, 4, 0, 1),
    ],
)
def test_workers_and_threads_are_no_more_than_the_cores(count, processes, workers, threads, machine):
    machine(count)
    assert default_workers(processes) == workers
    torch.set_num_threads(count)
    limit_threads(workers, processes)
    assert torch.get_num_threads() == threads
    assert processes * (workers + threads) <= max(count, processes)


def test_with_a_gpu_all_cores_may_load(machine, monkeypatch):
    machine(6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_workers() == 6
    torch.set_num_threads(6)
    assert limit_threads(6, on_cpu=False) == "6 cores: 6 loader workers"
    assert torch.get_num_threads() == 6
    machine(30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_workers() == 8


def test_what_the_user_set_stays(machine, monkeypatch):
    machine(8)
    torch.set_num_threads(2)
    assert limit_threads(0) == "8 cores: 0 loader workers, 2 compute threads"
    torch.set_num_threads(8)
    assert limit_threads(8) == "8 cores: 8 loader workers, 4 compute threads"  # half of the cores compute
    torch.set_num_threads(8)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert limit_threads(4) == "8 cores: 4 loader workers, 8 compute threads"


def test_a_fit_says_what_is_used(voc_root, machine, caplog, tmp_path):
    machine(2)
    torch.set_num_threads(2)
    data = VOCDataModule(voc_root, class_names=SYNTHETIC_CLASSES, image_size=16)
    assert data.num_workers == 1

    class Nothing(L.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

        def configure_optimizers(self):
            return None

    trainer = L.Trainer(
        default_root_dir=tmp_path, callbacks=[DivideCores()], max_steps=0, logger=False, enable_checkpointing=False,
        accelerator="cpu",
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        trainer.fit(Nothing(), data)
    assert "2 cores: 1 loader worker, 1 compute thread" in caplog.messages
    assert torch.get_num_threads() == 1
