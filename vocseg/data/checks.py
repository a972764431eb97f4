"""Checks of the labels of a data set, before anything is trained or scored on it.

Masks that can be read may still mean something else than the class list says. Then the training ends without an error
and its network is wrong. The checks find such masks from label counts alone.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import yaml

from vocseg.data.files import CheckedSample
from vocseg.data.labels import VOID
from vocseg.data.masks import MaskReader
from vocseg.errors import VocsegError

BORDERS = 0.1
"""A larger void share is more than the borders of objects (5 % in VOC)."""
SMALL = 20
"""Fewer masks may be a small part of VOC that lacks the last half of its classes by chance."""
NAMED = 10
"""At most so many classes are named in a message."""


def check_labels(
    samples: Mapping[str, Sequence[CheckedSample]], masks: MaskReader, *, default_classes: bool = False
) -> list[str]:
    """Checks what the masks of one or more splits contain.

    Args:
        samples: by role (train, val, test), what was found in the files.
        masks: the reader that read them; it has the class names.
        default_classes: whether the class names are a default that neither the user nor a file of the data gave.

    Returns:
        Notes for the user, one to four sentences each.

    Raises:
        VocsegError: the labels do not fit the class names; the message says how to read them.
    """
    errors, notes = find_label_problems(samples, masks, default_classes=default_classes)
    if errors:
        raise VocsegError("\n".join(errors))
    return notes


def find_label_problems(
    samples: Mapping[str, Sequence[CheckedSample]], masks: MaskReader, *, default_classes: bool = False
) -> tuple[list[str], list[str]]:
    """Returns the errors and the notes of :func:`check_labels`."""
    names = masks.class_names
    totals = {role: _total(found) for role, found in samples.items() if found}
    problems: dict[tuple[bool, str], list[str]] = {}  # splits with the same problem share a message
    for role, total in totals.items():
        problem = _split_problem(total, masks, _has_value_255(samples[role]), role == "train", default_classes)
        if problem is not None:
            problems.setdefault(problem, []).append(role)
    errors: list[str] = []
    notes: list[str] = []
    for (is_error, message), roles in problems.items():
        (errors if is_error else notes).append(f"The {' and '.join(roles)} masks {message}")
    if "train" not in totals or errors:
        return errors, notes
    labels = np.flatnonzero(np.sum([*totals.values()], axis=0)[: len(names)]).tolist()
    if default_classes and _are_of_another_list(labels, sum(map(len, samples.values())), len(names)):
        errors.append(
            f"The masks have only the labels {_ranges(labels)}, but class_names is VOC's list of {len(names)} classes, "
            f'because no other was given. Name the classes of these masks: --data.class_names "[background, ...]", '
            f"{labels[-1] + 1} names. (For a part of VOC name all {len(names)}.)"
        )
        return errors, notes
    return errors, notes + _missing_classes(totals, masks, _has_value_255(samples["train"]))


def _split_problem(
    total: np.ndarray, masks: MaskReader, has_255: bool, trains: bool, default_classes: bool
) -> tuple[bool, str] | None:
    """A problem with the labels of one split: whether it is an error, and what the masks are or have."""
    names = masks.class_names
    labels = np.flatnonzero(total[: len(names)]).tolist()
    void = total[VOID] / max(total.sum(), 1)
    binary = len(names) == 2 or default_classes
    hint = " Check that these are the right masks."
    if has_255:
        other = names[1 - labels[0]] if len(names) == 2 and len(labels) == 1 else "<class>"
        setting = f'--data.labels "{_flow({VOID: other})}"'
        if default_classes:
            setting = f'--data.class_names "[background, object]" --data.labels "{_flow({VOID: "object"})}"'
        hint = (
            f" {VOID} is read as void, which is ignored. If it is a class here (in masks of 0 and {VOID} it is often "
            f"an object), read it as one: {setting}"
        )
    elif masks.ignored and void:
        hint = f" Void are the pixels of {_listed([names[label] for label in sorted(masks.ignored)])}, as set."
    if not labels:
        return True, f"are all void: there is nothing to learn or to score.{hint}"
    if len(labels) == 1:
        also = (f" and {VOID}" if has_255 else " and void") if void else ""
        return trains or (binary and has_255), (
            f"have only the label {labels[0]} ({names[labels[0]]}){also}: there is nothing to learn or to score.{hint}"
        )
    return (False, f"are {void:.0%} void, which is ignored.{hint}") if void > 0.5 else None


def _are_of_another_list(labels: Sequence[int], masks: int, num_classes: int) -> bool:
    """Whether these labels are hardly a part of the default classes: all in the lower half of a list of many."""
    is_range = len(labels) == labels[-1] - labels[0] + 1 and labels[0] <= 1
    return labels[-1] < num_classes / 2 and (is_range or masks >= SMALL)


def _missing_classes(totals: Mapping[str, np.ndarray], masks: MaskReader, has_255: bool) -> list[str]:
    """A note about the classes without a pixel in the training masks, if there are any."""
    names, train = masks.class_names, totals["train"]
    missing = [label for label in range(len(names)) if not train[label] and label not in masks.ignored]
    if not missing:
        return []
    note = (
        f"The train masks have no pixel of {len(missing)} of {len(names)} classes: "
        f"{_listed([names[label] for label in missing])}. The network cannot learn these."
    )
    if len(missing) > len(names) / 2:
        note += " Check that --data.class_names are the classes of these masks."
    elsewhere = [names[label] for label in missing if any(total[label] for total in totals.values())]
    if elsewhere:
        note += f" Other splits have pixels of {_listed(elsewhere)}."
    void = train[VOID] / train.sum()
    if has_255 and len(missing) <= len(names) / 2 and BORDERS < void <= 0.5:  # a larger share has its own note
        note += f' {void:.0%} is void ({VOID}): if {VOID} is one of them, --data.labels "{_flow({VOID: "<class>"})}"'
    return [note]


def _total(samples: Sequence[CheckedSample]) -> np.ndarray:
    """The pixels of all samples by label, int64 [256]."""
    total = np.zeros(256, np.int64)
    for sample in samples:
        total += sample.counts
    return total


def _has_value_255(samples: Sequence[CheckedSample]) -> bool:
    return any(sample.read_by == "value" and VOID in sample.values and sample.counts[VOID] for sample in samples)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _ranges(labels: Sequence[int]) -> str:
    """``0 to 2`` for consecutive labels, else ``0, 2, 5``."""
    if len(labels) > 2 and len(labels) == labels[-1] - labels[0] + 1:
        return f"{labels[0]} to {labels[-1]}"
    return ", ".join(map(str, labels))


def _flow(table: dict[int, str]) -> str:
    """The table as YAML on one line, with names such as ``no`` in quotes."""
    return yaml.safe_dump(table, default_flow_style=True, width=1000).strip()
