"""Measures images per second: a plain PyTorch loop, vocseg with Lightning's Trainer, and the data loader alone.

    python benchmarks/throughput.py --root /path/to/voc

The network is the paper's baseline with batches of 16 images of 224x224 pixels. Both loops use the same data, network,
loss and optimizer; vocseg's loggers, checkpoints and progress bar are enabled. Rounds of the two alternate in one
process, so that other load on the machine affects both. The first round of each is the warm-up and is not counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from vocseg import DeconvDecoder, SegmentationTask, StridedEncoder, VOCDataModule
from vocseg.callbacks import MetricsCSV, ResultTable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class EpochTimer(L.Callback):
    """Measures the seconds from the start of the first epoch to the end of training, with the checkpoint."""

    def on_train_epoch_start(self, trainer, pl_module):
        """Starts the timer."""
        self.started = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        """Stops the timer."""
        self.seconds = time.perf_counter() - self.started


def make_task(data: VOCDataModule) -> SegmentationTask:
    """Builds the paper's baseline, with the same weights at each call."""
    torch.manual_seed(0)
    optimizer = partial(torch.optim.Adam, lr=5e-4)
    return SegmentationTask(StridedEncoder(), DeconvDecoder, data.class_names, optimizer=optimizer)


def bare(data: VOCDataModule, batches: int) -> float:
    """Trains ``batches`` batches in a plain PyTorch loop; returns images per second."""
    task = make_task(data).to(DEVICE).train()
    optimizer = torch.optim.Adam(task.parameters(), lr=5e-4)
    images = 0
    loader = data.train_dataloader()
    started = time.perf_counter()
    for number, batch in enumerate(loader):
        if number == batches:
            break
        batch = {key: batch[key].to(DEVICE, non_blocking=True) for key in ("image", "mask")}
        batch = data.on_after_batch_transfer(batch, 0)
        image, mask = batch["image"].contiguous(memory_format=torch.channels_last), batch["mask"]
        logits = task.decoder(task.backbone(image))
        loss = torch.nn.functional.cross_entropy(logits, mask, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(image)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def through_trainer(data: VOCDataModule, batches: int) -> float:
    """Trains ``batches`` batches as `vocseg fit` does; returns images per second."""
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            default_root_dir=folder,
            max_epochs=1,
            limit_train_batches=batches,
            limit_val_batches=0,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=10,
            callbacks=[
                timer,
                ModelCheckpoint(save_last=True),
                LearningRateMonitor("epoch"),
                MetricsCSV(),
                ResultTable(),
            ],
            enable_model_summary=False,
        )
        trainer.fit(make_task(data), data)
    return batches * data.batch_size / timer.seconds


def pipeline(data: VOCDataModule) -> float:
    """Reads one epoch of the data loader without a network; returns images per second."""
    loader = data.train_dataloader()
    started = time.perf_counter()
    images = sum(len(batch["image"]) for batch in loader)
    return images / (time.perf_counter() - started)


def rounds_of(count: int, **loops: Callable[[], float]) -> dict[str, list[float]]:
    """Runs the loops in turn, once as warm-up and then ``count`` times; returns their results by name."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(count + 1):
        for name, loop in loops.items():
            rate = loop()
            if number:
                rates[name].append(rate)
    return rates


def show(name: str, rates: list[float]) -> None:
    """Prints the median and the range."""
    print(f"{name:<34} {statistics.median(rates):8.2f} images/s   ({min(rates):.2f} to {max(rates):.2f})")


def main() -> None:
    """Runs all measurements and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", default="synthetic", help="as --data.root")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=13, help="batches per round; 13 are one epoch of VOC2007")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()

    def make_data(**settings) -> VOCDataModule:
        data = VOCDataModule(root=options.root, num_workers=options.workers, **settings)
        data.prepare_data()
        data.setup("fit")
        return data

    memory = make_data(in_memory=True)
    if len(memory.datasets["train"]) < options.batches * memory.batch_size:
        raise SystemExit("The training split has fewer batches than --batches.")
    rates = rounds_of(
        options.rounds,
        bare=lambda: bare(memory, options.batches),
        vocseg=lambda: through_trainer(memory, options.batches),
    )
    print(f"\ntorch {torch.__version__}, {DEVICE.type}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    show("(a) plain PyTorch loop", rates["bare"])
    show("(b) vocseg with the Trainer", rates["vocseg"])
    ratios = [ours / theirs for ours, theirs in zip(rates["vocseg"], rates["bare"], strict=True)]
    print(
        f"{'(b) / (a), round by round':<34} {statistics.median(ratios):8.3f}"
        f"            ({min(ratios):.3f} to {max(ratios):.3f})"
    )

    disk = make_data()
    loops = {"disk": lambda: pipeline(disk), "memory": lambda: pipeline(memory)}
    disk_crop, memory_crop = (make_data(train_transforms="crop", in_memory=kept) for kept in (False, True))
    loops |= {"disk_crop": lambda: pipeline(disk_crop), "memory_crop": lambda: pipeline(memory_crop)}
    rates = rounds_of(options.rounds, **loops)
    show("data alone, resize, from disk", rates["disk"])
    show("data alone, resize, in memory", rates["memory"])
    show("data alone, crop, from disk", rates["disk_crop"])
    show("data alone, crop, in memory", rates["memory_crop"])


if __name__ == "__main__":
    main()
