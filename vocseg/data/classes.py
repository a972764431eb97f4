"""Class names: their checks, and the files in which annotation tools write them."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.text import read_lines, read_text
from vocseg.errors import VocsegError

ClassNames = list[str | bool | int | float | None] | str | None
"""The type of the setting ``class_names``. It includes what YAML makes of names without quotes (``no`` is False), so
that ``check_class_names`` can explain it."""

Colours = dict[str, list[int]]

CLASS_FILES = (
    *("labelmap.txt", "_classes.csv", "class_dict.csv"),
    *("class_names.txt", "classes.txt", "class_names.json", "classes.json"),
)
"""The files in which class names are looked for, in this order."""

MAX_CLASSES = VOID - 1
"""Labels have 8 bits, and 255 is void."""


@dataclass(frozen=True)
class Classes:
    """The classes that a file lists.

    Attributes:
        path: of the file.
        names: one per label.
        colours: red, green and blue of each class in the masks, and of ``void``; empty if the file has no colours.
        values: the class of each value in the masks; empty if the values are 0, 1, 2 and so on.
    """

    path: Path
    names: list[str]
    colours: Colours
    values: dict[int, str] = field(default_factory=dict)


def check_class_names(class_names: Sequence[Any] | str) -> list[str]:
    """Checks the names of classes.

    Args:
        class_names: one name per label, or all of them as one string with commas between them.

    Returns:
        The names.

    Raises:
        VocsegError: an entry is not a string (YAML without quotes), two names are equal, or there are too few or too
            many.
    """
    if isinstance(class_names, str):
        class_names = [name.strip() for name in class_names.strip().removeprefix("[").removesuffix("]").split(",")]
    for position, name in enumerate(class_names):
        if not isinstance(name, str):
            raise VocsegError(
                f"class_names has {name!r} at position {position}, which is not a string: put the name in quotes. YAML "
                "reads no, yes, on, off, null and numbers as values."
            )
        if not name.strip():
            raise VocsegError(f"class_names has an empty name at position {position}.")
    names = [name.strip() for name in class_names]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise VocsegError(
            f"class_names has {', '.join(map(repr, repeated))} more than once. Each label needs its own name."
        )
    if not 2 <= len(names) <= MAX_CLASSES:
        raise VocsegError(
            f"class_names must name 2 to {MAX_CLASSES} classes, got {len(names)}"
            + (f" ({names[0]!r})" if len(names) == 1 else "")
            + f". Labels are stored in 8 bits, and {VOID} is void. The background counts as a class."
        )
    return names


def find_classes(folders: Sequence[Path]) -> Classes | None:
    """Reads the first file of ``CLASS_FILES`` that the folders have; None if they have none.

    Raises:
        VocsegError: the file cannot be read.
    """
    for folder in folders:
        for name in CLASS_FILES:
            if (folder / name).is_file():
                return read_classes(folder / name)
    return None


def read_classes(path: Path) -> Classes:
    """Reads a file of class names.

    The formats are: CVAT's ``labelmap.txt`` (``name:red,green,blue:parts:actions``), Roboflow's ``_classes.csv``
    (``Pixel Value, Class``), a table with the columns ``name, r, g, b``, one name per line (as ``labelme2voc`` writes),
    and JSON (a list of names, or an object of labels and names).

    Raises:
        VocsegError: the file has another content, or its names are not usable; see ``check_class_names``.
    """
    read = {".csv": _read_table, ".json": _read_json}.get(path.suffix.lower(), _read_lines)
    classes = read(path)
    try:
        classes = replace(classes, names=check_class_names(classes.names))
    except VocsegError as error:
        raise VocsegError(f"{path}: {error}") from error
    owners: dict[tuple[int, ...], str] = {}
    for name, colour in classes.colours.items():
        if owners.setdefault(tuple(colour), name) != name:
            raise VocsegError(f"{path} gives the colour {colour} to {owners[tuple(colour)]} and to {name}.")
    return classes


def rename_classes(classes: Classes, class_names: Sequence[str]) -> Classes:
    """Gives the colours and values of a file to the classes of a user's own list of names.

    If the lists share names, the names decide, and all names of the file must be in the user's list. Else the user
    renamed the classes and kept their order, and the lists must have the same length.

    Raises:
        VocsegError: the lists do not fit each other.
    """
    renamed = replace(classes, names=list(class_names))
    if not (classes.colours or classes.values) or set(classes.names) <= set(class_names):
        return renamed
    if set(classes.names) & set(class_names) or len(class_names) != len(classes.names):
        raise VocsegError(
            f"class_names ({', '.join(class_names)}) does not fit {classes.path}, which lists "
            f"{', '.join(classes.names)}. Leave class_names out, or give all names of that file."
        )
    new = dict(zip(classes.names, class_names, strict=True))
    return replace(
        renamed,
        colours={new.get(name, name): colour for name, colour in classes.colours.items()},
        values={value: new[name] for value, name in classes.values.items()},
    )


def names_and_settings(
    folders: Sequence[Path], class_names: ClassNames, settings: dict[str, Any]
) -> tuple[list[str] | None, dict[str, Any]]:
    """Chooses the class names of a data module, and what its masks' colours or values mean.

    Args:
        folders: where a file of ``CLASS_FILES`` may be.
        class_names: the user's names, or None.
        settings: the user's other settings.

    Returns:
        The user's names, or else those of the file, or else None; and the settings ``colours`` and ``labels`` that the
        file determines and the user did not give.

    Raises:
        VocsegError: the names or the file are not usable.
    """
    names = None if class_names is None else check_class_names(class_names)
    classes = find_classes(folders)
    if classes is None:
        return names, {}
    if names is not None:
        classes = rename_classes(classes, names)
    found = {"colours": classes.colours, "labels": classes.values}
    return classes.names, {name: value for name, value in found.items() if value and settings.get(name) is None}


def _read_lines(path: Path) -> Classes:
    """Reads ``labelmap.txt``, or one name per line. Both may name the pixels to ignore."""
    lines = [(number, line) for number, line in read_lines(path) if not line.startswith("#")]
    is_map = path.name == "labelmap.txt" and all(":" in line for _, line in lines)
    names: list[str] = []
    colours: Colours = {}
    for number, line in lines:
        name, colour = (part.strip() for part in line.split(":")[:2]) if is_map else (line, "")
        numbers = [int(part) if part.strip().isdecimal() else -1 for part in colour.split(",") if colour]
        if numbers and (len(numbers) != 3 or not all(0 <= value <= 255 for value in numbers)):
            raise VocsegError(
                f"{path}, line {number}: {line!r} is not of the form name:red,green,blue:parts:actions with numbers "
                "from 0 to 255."
            )
        is_void = name == "__ignore__" or (name == "ignored" and numbers == VOC_PALETTE[VOID].tolist())
        if numbers:
            colours["void" if is_void else name] = numbers
        if not is_void:
            names.append(name)
    if is_map and not colours:  # the colours that the tool gives to labels without one
        colours = {name: VOC_PALETTE[label].tolist() for label, name in enumerate(names)}
    elif colours and not colours.keys() >= set(names):
        raise VocsegError(f"{path} has classes with a colour and classes without one. Give every class a colour.")
    numbered = [re.fullmatch(r"(\d+)[\s:,]+(\S.*)", name) for name in names]
    if not is_map and [match and int(match[1]) for match in numbered] == list(range(len(names))):
        names = [match[2] for match in numbered if match]  # "0 background", "1 cat"
    return Classes(path, names, colours)


def _read_table(path: Path) -> Classes:
    """Reads a CSV file with a heading: pixel values and names, or names and colours."""
    synonyms = {"class": "name", "class name": "name", "label": "name", "red": "r", "green": "g", "blue": "b"}
    cells = [[cell.strip() for cell in row] for row in csv.reader(read_text(path).splitlines())]
    columns = [name.lower().replace("_", " ") for name in cells[0]] if cells else []
    columns = [synonyms.get(name, name) for name in columns]
    table = [dict(zip(columns, row, strict=False)) for row in cells[1:] if any(row)]
    try:
        names = [row["name"] for row in table]
        if "pixel value" not in columns:
            return Classes(path, names, {row["name"]: [int(row[channel]) for channel in "rgb"] for row in table})
        values = {int(row["pixel value"]): row["name"] for row in table}
    except (KeyError, ValueError) as error:
        raise VocsegError(
            f"{path} is not a table of classes: its first line must be 'Pixel Value, Class' or 'name,r,g,b', and all "
            "other lines must have these columns."
        ) from error
    if len(values) < len(names):
        raise VocsegError(f"{path} gives the same pixel value to two classes.")
    names = [values[value] for value in sorted(values)]
    return Classes(path, names, {}, {} if sorted(values) == list(range(len(values))) else values)


def _read_json(path: Path) -> Classes:
    """Reads a list of names, or an object that maps labels to names."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise VocsegError(f"{path} is not valid JSON: {error}.") from error
    if isinstance(content, dict) and set(content) == {str(label) for label in range(len(content))}:
        content = [content[str(label)] for label in range(len(content))]
    if not isinstance(content, list):
        raise VocsegError(
            f'{path} must hold a list of names, ["background", "cat"], or labels from 0 and their names, '
            '{"0": "background", "1": "cat"}.'
        )
    return Classes(path, content, {})
