"""Measures the time of the losses, forward and backward, on one batch of the paper's baseline: 16 x 21 x 224 x 224.

    python benchmarks/losses.py

Each round runs every loss once, so that other load on the machine affects all of them equally. The result is the ratio
to plain cross-entropy within a round.
"""

import statistics
import time

import torch

from vocseg import CrossEntropy, FocalLoss

ROUNDS = 15


def main() -> None:
    """Measures, and prints milliseconds and ratios."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(16, 21, 224, 224, generator=generator, requires_grad=True)
    mask = torch.randint(0, 21, (16, 224, 224), generator=generator)
    mask[:, :10] = 255
    weights = torch.rand(21, generator=generator).tolist()
    losses = {
        "cross-entropy": CrossEntropy(),
        "weighted cross-entropy": CrossEntropy(weights),
        "focal": FocalLoss(2.0),
        "weighted focal": FocalLoss(2.0, weights),
    }
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(ROUNDS + 1):
        for name, loss in losses.items():
            logits.grad = None
            start = time.perf_counter()
            loss(logits, mask).backward()
            if number:  # round 0 is the warm-up
                seconds[name].append(time.perf_counter() - start)
    plain = seconds["cross-entropy"]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {ROUNDS} rounds")
    for name, times in seconds.items():
        ratio = statistics.median(time / base for time, base in zip(times, plain, strict=True))
        print(f"{name:<24} {statistics.median(times) * 1000:6.1f} ms   {ratio:.2f} x cross-entropy")


if __name__ == "__main__":
    main()
