"""Measures what the options for speed bring: seconds of training, with and without each, in turn in one process.

    python benchmarks/options.py precision channels_last compile
    python benchmarks/options.py cache_features --root /path/to/voc --weights mobilenet_v2.pth

The first three are measured in steps of experiments/mobilenet.yaml's network (8 crops of 256x256 pixels).
cache_features is measured in epochs (batches of 16 images of 224x224 pixels, with their loading) and validations of
frozen backbones. Ratios are those of neighbouring rounds. The first round of each is the warm-up, and is shown apart.
On a CPU with OMP_NUM_THREADS=1, seconds are those that the process computes, without those that it waits for others.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import lightning as L
import torch

from vocseg import DeconvDecoder, MobileNetV2, ResNet, SegmentationTask, SkipDecoder, VOCDataModule
from vocseg.feature_cache import FeatureCache

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# what else a busy machine does is not in the CPU's seconds of this process; several threads are added up in them
clock = time.process_time if DEVICE.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def make_task(backbone=None, decoder=SkipDecoder, **settings) -> SegmentationTask:
    """Builds a task with the same weights at each call, in training mode."""
    torch.manual_seed(0)
    backbone = MobileNetV2(output_stride=16) if backbone is None else backbone()
    backbone.load_pretrained()
    return SegmentationTask(backbone, decoder, **settings).to(DEVICE).train()


def stepper(task: SegmentationTask, autocast: bool = False) -> Callable[..., float]:
    """Returns a function that trains one batch and returns its seconds."""
    optimizer = torch.optim.AdamW((value for value in task.parameters() if value.requires_grad), lr=1e-3)

    def step(image: torch.Tensor, mask: torch.Tensor) -> float:
        started = clock()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=autocast):
            total = task.training_losses(image.to(DEVICE), mask.to(DEVICE))[1]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    return step


def compare(title: str, rounds: int, **ways: Callable[[], float]) -> None:
    """Runs the ways in turn; prints their medians and the first way's time over each other one's."""
    seconds = {name: [way()] for name, way in ways.items()}
    for _ in range(rounds):
        for name, way in ways.items():
            seconds[name].append(way())
    first, *others = ways
    print(f"{title}: {first} {statistics.median(seconds[first][1:]):.3f} s", flush=True)
    for name in others:
        ratios = [a / b for a, b in zip(seconds[first][1:], seconds[name][1:], strict=True)]
        print(
            f"  {name}: {statistics.median(seconds[name][1:]):.3f} s, {statistics.median(ratios):.2f}x "
            f"({min(ratios):.2f} to {max(ratios):.2f}); the first round {seconds[name][0]:.1f} s",
            flush=True,
        )


def steps(option: str, rounds: int) -> None:
    """Compares training steps."""
    image, mask = torch.randn(8, 3, 256, 256), torch.randint(0, 21, (8, 256, 256))
    task = make_task(channels_last=option != "channels_last")
    if option == "compile":
        task.training_losses = torch.compile(task.training_losses)
    plain, other = stepper(make_task()), stepper(task, autocast=option == "precision")
    names = {"precision": "bf16-mixed", "compile": "compiled", "channels_last": "contiguous"}
    compare("one step", rounds, **{"default": lambda: plain(image, mask), names[option]: lambda: other(image, mask)})


def epochs(root: str, weights: str | None, batches: int, rounds: int) -> None:
    """Compares epochs and validations of frozen backbones."""
    data = VOCDataModule(root=root, num_workers=0, in_memory=True, train_images=16 * batches)
    data.setup("fit")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator=DEVICE.type, devices=1, limit_val_batches=batches, **quiet)
    networks = {
        "MobileNetV2, SkipDecoder": (partial(MobileNetV2, weights=weights, freeze=True), SkipDecoder),
        "ResNet-34, DeconvDecoder": (partial(ResNet, 34, freeze=True), DeconvDecoder),
    }
    for title, (backbone, decoder) in networks.items():
        plain, cached = make_task(backbone, decoder), make_task(backbone, decoder)
        cache = cached.network.feature_cache = FeatureCache(8)

        def train(step: Callable[..., float]) -> float:
            started = clock()
            for batch in data.train_dataloader():
                batch = data.on_after_batch_transfer(batch, 0)
                step(batch["image"], batch["mask"])
            return clock() - started

        def validate(task: SegmentationTask) -> float:
            started = clock()
            trainer.validate(task, data, verbose=False)
            task.train()
            return clock() - started

        compare(
            f"{title}, one epoch",
            rounds,
            without=partial(train, stepper(plain)),
            cached=partial(train, stepper(cached)),
        )
        compare(f"{title}, one validation", rounds, without=partial(validate, plain), cached=partial(validate, cached))
        size = 8 - cache.bytes_left / 1e9
        print(f"  {len(cache)} images in {size:.2f} GB")


def main() -> None:
    """Measures the chosen options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("options", nargs="+", choices=["precision", "channels_last", "compile", "cache_features"])
    parser.add_argument("--root", default="synthetic", help="as --data.root")
    parser.add_argument("--weights", help="of MobileNetV2")
    parser.add_argument("--batches", type=int, default=13, help="of an epoch and a validation; 13 are VOC2007's")
    parser.add_argument("--rounds", type=int, default=10)
    settings = parser.parse_args()
    print(f"torch {torch.__version__}, {DEVICE.type}, {torch.get_num_threads()} threads, {settings.rounds} rounds")
    for option in settings.options:
        if option == "cache_features":
            epochs(settings.root, settings.weights, settings.batches, settings.rounds)
        else:
            steps(option, settings.rounds)


if __name__ == "__main__":
    main()
