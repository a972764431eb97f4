"""``vocseg sweep --check``: trains the run of a record again, and says how far it is reproduced."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError
from vocseg.intervals import bootstrap_interval
from vocseg.records import read_record, rounded
from vocseg.run_folder import Line, Run, RunFolder, read_run
from vocseg.saving import write_json
from vocseg.sweep.plan import Plan, Setting, begin_runs, check_words, read_options
from vocseg.sweep.runner import execute, in_own_process, run_jobs

_OF_SCORES = ("precision", "limit_val_batches", "limit_test_batches")
"""Settings of the trainer that change scores, and that a checkpoint does not hold."""

TO_THE_BIT, WITHIN, OUTSIDE = "to the bit", "within its interval", "not reproduced"


def check_record(record: Path, folder: Path, options: Sequence[str], *, in_process: bool = False) -> str:
    """Trains the run of a record again, and prints how far it is reproduced.

    Args:
        record: folder of the record.
        folder: to write: the run, its record, and ``check.json``. An interrupted check is resumed.
        options: further words of ``vocseg fit``: where the data and weights are, which a record does not say.
        in_process: train in this process.

    Returns:
        ``TO_THE_BIT`` (metrics, scores and confusion matrices are equal) or ``WITHIN`` (each mIoU lies in the
        95 % interval of the record's).

    Raises:
        VocsegError: the record is unknown or has no settings, a path is missing, the run failed, or it is not
            reproduced.
    """
    before = read_run(RunFolder(record))
    splits = [split for split in ("val", "test") if split in before.scores]
    if not before.configs or not splits:
        raise VocsegError(
            f"{record} is no record that can be checked: it needs config.yaml, and val.json or test.json."
        )
    if len(before.configs) > 1:
        raise VocsegError(f"{record} was resumed with other settings (config_1.yaml): no single run reproduces it.")
    given = read_options(options)
    _check_paths(before.configs[0], {name for name, _ in given}, record)
    trainer = before.configs[0].get("trainer", {})
    # as options they hold for the scores, too
    of_scores = {f"trainer.{name}": trainer.get(name) for name in _OF_SCORES}
    given = [*((name, str(value)) for name, value in of_scores.items() if value is not None), *given]
    setting = Setting(record.name, [str(before.folder.config)], given)
    seed = int(before.facts.get("seed", before.configs[0].get("seed_everything", 0)))
    plan = Plan(f"check-{record.name}", folder, [setting], [seed], "test" in splits)
    check_words(plan)
    begin_runs(plan)
    start = execute if in_process else in_own_process
    failed = run_jobs(plan.jobs(), start, partial(read_record, splits=plan.splits))
    if failed:
        raise VocsegError("\n".join(failed.values()))
    verdict, found = compare(before, read_record(plan.record(setting, seed), plan.splits))
    write_json(folder / "check.json", {"record": str(record), "verdict": verdict, "found": found})
    print("\n".join(["", *found, f"{record.name}: {verdict}"]))
    if verdict == OUTSIDE:
        raise VocsegError(f"{record.name} is not reproduced, as the lines above say.")
    return verdict


def compare(before: Run, now: Run) -> tuple[str, list[str]]:
    """Compares a record with that of the same run, trained again.

    Args:
        before: the record.
        now: the new one, which has the same splits.

    Returns:
        The verdict, and a line for each figure that was compared.
    """
    equal_metrics, text = _compare_metrics(before.lines, now.lines)
    found, equal, within = [text], equal_metrics, True
    for split, scores in before.scores.items():
        new = now.scores[split]
        differing = [name for name, value in scores.summary.items() if new.summary.get(name, value) != value]
        differing = [name for name in differing if name in ("images", "loss", "miou", "pixel_accuracy", "iou")]
        old_matrices, matrices = scores.matrices, new.matrices
        assert matrices is not None, "a new record has them"
        same = not differing and (old_matrices is None or _same(old_matrices, matrices))
        equal &= same
        old, miou = scores.summary["miou"], new.summary["miou"]
        text = f"{split}: mIoU {old:.6f} in the record, {miou:.6f} now"
        if same:
            text += ", all scores equal" + ("" if old_matrices is None else " and the confusion matrix of each image")
        elif old_matrices is None:
            within = False
            text += "; the record has no confusion matrices, and so no interval"
        elif len(old_matrices) != len(matrices):
            within = False
            text += f"; of {len(old_matrices)} images in the record, {len(matrices)} now"
        else:
            low, high = bootstrap_interval(old_matrices)
            within &= low <= miou <= high
            text += f", {'inside' if low <= miou <= high else 'outside'} its 95 % interval {low:.4f} to {high:.4f}"
            low, high = bootstrap_interval(matrices, minus=old_matrices)
            text += f"; difference {miou - old:+.4f}, paired interval {low:+.4f} to {high:+.4f}"
        found.append(text)
    return TO_THE_BIT if equal else WITHIN if within else OUTSIDE, found


def _compare_metrics(before: Sequence[Line], now: Sequence[Line]) -> tuple[bool, str]:
    """Whether the scalars of all epochs are equal, to the digits of a record and except for the time."""
    for old, new in zip(before, now, strict=False):
        old, new = rounded(old), rounded(new)
        names = [name for name in old if name in new and name != "seconds" and old[name] != new[name]]
        if names:
            largest = max(names, key=lambda name: abs(old[name] - new[name]))
            values = f"{largest} {old[largest]:g} in the record, {new[largest]:g} now"
            return False, f"metrics.csv: {len(names)} scalars differ from epoch {old['epoch']:g} on ({values})"
    if len(before) != len(now):
        return False, f"metrics.csv: {len(before)} epochs in the record, {len(now)} now"
    return True, f"metrics.csv: all {len(now)} epochs are equal"


def _same(matrices: ConfusionMatrices, others: ConfusionMatrices) -> bool:
    arrays = others.to_arrays()
    return all(np.array_equal(array, arrays[name]) for name, array in matrices.to_arrays().items())


def _check_paths(config: dict[str, Any], given: set[str], record: Path) -> None:
    missing = {
        name: value
        for name, value in _leaves(config)
        if value.startswith("/path/to/")
        and name not in given
        and not Path(value).exists()
        and name != "trainer.default_root_dir"  # the check writes to a folder of its own
    }
    if missing:
        options = " ".join(f"--{name} {value}" for name, value in missing.items())
        raise VocsegError(f"{record} does not say where its files are. Give their paths: {options}")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The dotted names, without ``init_args``, of all words in nested settings."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, name if key == "init_args" else f"{name}.{key}".lstrip("."))
    elif isinstance(value, str):
        yield name, value
