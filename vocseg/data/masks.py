"""From the pixels of a mask file to labels."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2  # albumentations' own dependency
import numpy as np

from vocseg.data.images import StoredPixels, decode
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.messages import say_once
from vocseg.errors import VocsegError, nearest

VALUE_MODES = ("1", "L", "LA", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey images, whose values are labels."""
SHOWN = 6
"""At most so many values or colours are named in a message."""


class MaskPixels(NamedTuple):
    """The labels of a mask file, and what they were in the file.

    Attributes:
        labels: uint8 [H, W], 0 to C - 1, and 255 for void.
        read_by: ``value`` (of grey or palette pixels) or ``colour``.
        values: the distinct values in the file, int or (red, green, blue).
    """

    labels: np.ndarray
    read_by: Literal["value", "colour"]
    values: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class MaskReader:
    """How the pixels of mask files become labels.

    - Grey pixels (1 to 32 bits, with or without alpha, RGB with three equal channels) are labels: 0 to C - 1, and 255
      for void. ``labels`` gives other values a meaning.
    - Palette pixels are read by their index, in the same way. If the palette has the colours of the classes in another
      order, they are read by colour, unless ``labels`` is given.
    - RGB pixels are read by colour; with ``colours``, also those with three equal channels, and grey pixels if all of
      them are among ``colours``.

    The colours are ``colours``, or else those of ``palette``.

    Args:
        class_names: one name per label.
        labels: the label of a value, where it is not the value itself.
        colours: the label of an RGB colour.
        ignored: labels that become void.
        palette: uint8 [256, 3], RGB of each label, for masks without ``colours``.
        exif_rotation: rotate masks as their own EXIF orientation says.
    """

    class_names: Sequence[str]
    labels: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[tuple[int, int, int], int] = field(default_factory=dict)
    ignored: frozenset[int] = frozenset()
    palette: np.ndarray = field(default_factory=lambda: VOC_PALETTE, repr=False)
    exif_rotation: bool = True
    _said: set[str] = field(default_factory=set, repr=False)
    _palettes: dict[bytes, bool] = field(default_factory=dict, repr=False)

    @classmethod
    def from_settings(
        cls,
        class_names: Sequence[str],
        labels: Mapping[int, str | int] | None = None,
        colours: Mapping[str, Sequence[int]] | None = None,
        ignore_classes: Iterable[str] | None = None,
        exif_rotation: bool = True,
    ) -> "MaskReader":
        """Builds a reader from the settings of a data module.

        Args:
            class_names: one name per label.
            labels: values in mask files -> class name, label, or ``void``.
            colours: class name or ``void`` -> red, green, blue.
            ignore_classes: the names of classes whose pixels become void.
            exif_rotation: rotate masks as their own EXIF orientation says.

        Raises:
            VocsegError: a name or number is none of the classes, or a colour is not three numbers of 0 to 255.
        """
        by_value = {_integer(value): _label(target, class_names, "labels") for value, target in (labels or {}).items()}
        by_colour: dict[tuple[int, int, int], int] = {}
        for name, colour in (colours or {}).items():
            label = _label(name, class_names, "colours")
            if isinstance(colour, str) or len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                raise VocsegError(f"colours: {name} must have red, green and blue, 0 to 255 each; got {colour!r}.")
            red, green, blue = (int(part) for part in colour)
            if by_colour.setdefault((red, green, blue), label) != label:
                raise VocsegError(f"colours: two classes have the colour [{red}, {green}, {blue}].")
        ignored = frozenset(_label(name, class_names, "ignore_classes") for name in ignore_classes or ()) - {VOID}
        return cls(tuple(class_names), by_value, by_colour, ignored, exif_rotation=exif_rotation)

    def read(self, path: Path) -> np.ndarray:
        """Reads a mask file as labels, uint8 [H, W]: 0 to C - 1, and 255 for void.

        Raises:
            VocsegError: the file is missing or damaged, or a pixel has no label; the message names the setting that
                gives it one.
        """
        stored = decode(path, "mask", self.exif_rotation)
        labels = self._looked_up(stored)
        return self._examine(path, stored).labels if labels is None else labels

    def examine(self, path: Path) -> MaskPixels:
        """As :meth:`read`, and what the labels were in the file."""
        return self._examine(path, decode(path, "mask", self.exif_rotation))

    def _looked_up(self, stored: StoredPixels) -> np.ndarray | None:
        """The labels of the most usual masks, 8-bit values that all have a label, in a tenth of the time; else None."""
        pixels, mode = stored.pixels, stored.mode
        if pixels.dtype != np.uint8 or pixels.ndim != 2 or not pixels.size:
            return None
        if mode == "L" and (self.colours or stored.raw_mode.startswith("L;")):
            return None
        if mode not in ("L", "P") or (mode == "P" and not self._is_read_by_index(stored.palette)):
            return None
        labels, has_no_label, are_values = self._tables
        if cv2.countNonZero(cv2.LUT(pixels, has_no_label)):
            return None
        return pixels if are_values else cv2.LUT(pixels, labels)

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray, bool]:
        """For each value of 8 bits its label and whether it has none, uint8 [256]; whether all labels are the value."""
        found = [self.label_of_value(value) for value in range(256)]
        labels = np.array([0 if label is None else label for label in found], np.uint8)
        are_values = all(label in (None, value) for value, label in enumerate(found))
        return labels, np.array([label is None for label in found], np.uint8), are_values

    def _is_read_by_index(self, palette: np.ndarray) -> bool:
        """Whether masks with this palette are read by index, whichever of its entries they use."""
        if self.labels:
            return True
        key = palette.tobytes()
        if key not in self._palettes:
            labels = [self._label_of_colour.get(colour) for colour in _packed(palette).tolist()]
            is_so = all(label in (None, self.label_of_value(index)) for index, label in enumerate(labels))
            if len(self._palettes) >= 16:  # masks of one origin have the same palette
                self._palettes.clear()
            self._palettes[key] = is_so
        return self._palettes[key]

    def _examine(self, path: Path, stored: StoredPixels) -> MaskPixels:
        pixels, mode = stored.pixels, stored.mode
        if mode in ("P", "PA"):
            return self._from_palette(path, pixels if mode == "P" else pixels[..., 0], stored)
        if mode not in (*VALUE_MODES, "RGB", "RGBA"):
            raise VocsegError(
                f"The mask {path} has mode {mode}, which vocseg does not read as labels: store it as a palette, grey "
                "or RGB PNG."
            )
        if pixels.ndim == 3 and pixels.shape[2] in (2, 4):
            pixels = _without_alpha(path, pixels)
        if pixels.ndim == 3:
            return self._from_rgb(path, _eight_bits(path, pixels), stored)
        if stored.raw_mode.startswith(("L;2", "L;4")):  # Pillow spreads 2 and 4 bits over 0 to 255
            pixels = pixels // (85 if stored.raw_mode.startswith("L;2") else 17)
        return self._from_grey(path, _integers(path, pixels), stored)

    def label_of_value(self, value: int) -> int | None:
        """The label of a grey value or palette index; None if it has none."""
        if value in self.labels:
            label = self.labels[value]
        elif value == VOID:
            return VOID
        elif 0 <= value < len(self.class_names) and value not in self.labels.values():
            label = value
        else:
            return None
        return VOID if label in self.ignored else label

    @cached_property
    def _label_of_colour(self) -> dict[int, int]:
        """The label of each colour, as red * 2**16 + green * 2**8 + blue."""
        if self.colours:
            colours = {_packed_colour(colour): label for colour, label in self.colours.items()}
        else:
            colours = {_packed_colour(self.palette[label]): label for label in range(len(self.class_names))}
        colours.setdefault(_packed_colour(self.palette[VOID]), VOID)
        return {colour: VOID if label in self.ignored else label for colour, label in colours.items()}

    def _from_palette(self, path: Path, indices: np.ndarray, stored: StoredPixels) -> MaskPixels:
        used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
        by_colour = None if self.labels else self._colours_in_another_order(path, used, stored)
        if by_colour is None:
            return self._by_value(path, indices, stored, used)
        listed = ", ".join(f"{label}: {name}" for label, name in enumerate(self.class_names[:2]))
        say_once(
            self._said,
            f"The palette of the mask {path} has the colours of the classes in another order: such masks are read by "
            f'colour. To read their indices, list them: --data.labels "{{{listed}, ...}}"',
            "palette",
        )
        table = np.zeros(256, np.uint8)
        table[used] = by_colour
        return MaskPixels(table[indices], "colour", tuple(map(tuple, stored.palette[used].tolist())))

    def _colours_in_another_order(self, path: Path, used: np.ndarray, stored: StoredPixels) -> list[int] | None:
        """The labels of the used palette entries by their colours, if that is how they must be read.

        It is so if the palette has only colours of the class list's palette (with ``colours``: any), and one that is
        used is at another index than its label. An entry that repeats an earlier colour is filling, and a palette of
        grey values says nothing.

        The unused entries decide too, so that all masks with the same palette are read in the same way.
        """
        palette = stored.palette
        if not len(used) or used[-1] >= len(palette) or (palette[used] == used[:, None]).all():
            return None
        colours = _packed(palette).tolist()
        if not (self.colours or set(colours) <= self._palette_colours):
            return None
        if any(colours.index(colours[index]) != index for index in used.tolist()):
            return None
        labels = {index: self._label_of_colour.get(colours[index]) for index in used.tolist()}
        if all(label is None or label == self.label_of_value(index) for index, label in labels.items()):
            return None
        unknown = [colours[index] for index, label in labels.items() if label is None]
        if unknown:
            raise VocsegError(self._colour_message(path, unknown, stored.format))
        return [label for label in labels.values() if label is not None]

    @cached_property
    def _palette_colours(self) -> set[int]:
        return set(_packed(self.palette).tolist())

    def _from_grey(self, path: Path, pixels: np.ndarray, stored: StoredPixels) -> MaskPixels:
        if self.colours and pixels.dtype == np.uint8:
            greys = set(_packed(np.unique(pixels)[:, None].repeat(3, 1)).tolist())
            if greys <= {_packed_colour(colour) for colour in self.colours}:  # for example black and white
                return self._by_colour(path, pixels[..., None].repeat(3, 2), stored)
        return self._by_value(path, pixels, stored)

    def _from_rgb(self, path: Path, pixels: np.ndarray, stored: StoredPixels) -> MaskPixels:
        is_grey = all(np.array_equal(pixels[..., 0], pixels[..., channel]) for channel in (1, 2))
        if is_grey and not self.colours:
            values = np.unique(pixels[..., 0])
            as_colours = set(_packed(values[:, None].repeat(3, 1)).tolist())
            if not self._unknown_values(values) or not as_colours <= set(self._label_of_colour):
                return self._by_value(path, pixels[..., 0], stored)
        return self._by_colour(path, pixels, stored)

    def _by_colour(self, path: Path, pixels: np.ndarray, stored: StoredPixels) -> MaskPixels:
        packed = _packed(pixels).ravel()
        # masks are of one colour over long runs of pixels: only the first of each run is looked up
        starts = np.flatnonzero(np.concatenate(([True], packed[1:] != packed[:-1])))
        found, inverse = np.unique(packed[starts], return_inverse=True)
        unknown = [colour for colour in found.tolist() if colour not in self._label_of_colour]
        if unknown:
            raise VocsegError(self._colour_message(path, unknown, stored.format))
        if not self.colours:
            say_once(
                self._said,
                f"The mask {path} has colours, and all of them are classes' colours in VOC's palette: such masks are "
                'read by it. If the classes have other colours: --data.colours "{<class>: [<red>, <green>, <blue>]}"',
                "colours",
            )
        labels = np.array([self._label_of_colour[colour] for colour in found.tolist()], np.uint8)
        runs = np.diff(starts, append=len(packed))
        shape = pixels.shape[:2]
        return MaskPixels(labels[inverse].repeat(runs).reshape(shape), "colour", tuple(map(_unpacked, found.tolist())))

    def _by_value(
        self, path: Path, pixels: np.ndarray, stored: StoredPixels, values: np.ndarray | None = None
    ) -> MaskPixels:
        if values is None:
            is_small = pixels.dtype in (np.uint8, np.uint16)
            values = np.flatnonzero(np.bincount(pixels.ravel())) if is_small else np.unique(pixels)
        unknown = self._unknown_values(values)
        if unknown:
            raise VocsegError(self._value_message(path, values.tolist(), unknown, stored.format))
        labels = np.array([self.label_of_value(value) for value in values.tolist()], np.uint8)
        found = tuple(values.tolist())
        if np.array_equal(labels, values):
            return MaskPixels(pixels.astype(np.uint8, copy=False), "value", found)
        if pixels.dtype in (np.uint8, np.uint16):
            table = np.zeros(values[-1] + 1, np.uint8)
            table[values] = labels
            return MaskPixels(table[pixels], "value", found)
        return MaskPixels(labels[np.searchsorted(values, pixels)], "value", found)

    def _unknown_values(self, values: np.ndarray) -> list[int]:
        return [value for value in values.tolist() if self.label_of_value(value) is None]

    def _value_message(self, path: Path, values: list[int], unknown: list[int], file_format: str) -> str:
        """Says which value of a mask has no label, and which setting would give it one."""
        count, first = len(self.class_names), unknown[0]
        if 0 <= first < count:
            problem = (
                f"The mask {path} has value {first}, which labels does not list, and the label {first} "
                f"({self.class_names[first]}) already stands for another value."
            )
        else:
            problem = (
                f"The mask {path} has label {first}, but there are {count} classes (0 to {count - 1}, and {VOID} for "
                f"void). Its values are {_listed(values)}."
            )
        if file_format == "JPEG" or len(values) > 2 * max(count, 20):
            if file_format == "JPEG":
                return f"{problem} The file is a JPEG, which changes values: store masks as PNG files."
            return f"{problem} So many values look like an image, or like blurred edges, not like a mask of labels."
        others = dict(sorted(self.labels.items()))
        if self.labels:
            example = {**{value: self._name(label) for value, label in others.items()}, first: "<class>"}
        elif values[0] > 0 and max(value for value in values if value != VOID or value in unknown) == count:
            example = {label + 1: name for label, name in enumerate(self.class_names)}
        else:
            example = {first: self.class_names[1] if count == 2 and len(unknown) == 1 else "<class>"}
        return (
            f"{problem} If the masks have other classes, name them with --data.class_names; if this value stands for "
            f'a class, say so: --data.labels "{_flow(example)}"'
        )

    def _colour_message(self, path: Path, unknown: list[int], file_format: str) -> str:
        """Says which colours of a mask belong to no class, and which setting would give them one."""
        colours = [list(_unpacked(colour)) for colour in unknown]
        problem = f"The mask {path} has colours of no class: {_listed(colours)}."
        if file_format == "JPEG":
            return f"{problem} The file is a JPEG, which changes colours: store masks as PNG files."
        if len(colours) > 256:
            return f"{problem} So many colours look like an image, or like blurred edges, not like a mask of labels."
        target = self.class_names[1] if len(self.class_names) == 2 else "<class>"
        return (
            f"{problem} Say which class each colour is, or store labels as a palette or grey PNG: "
            f'--data.colours "{{{target}: {colours[0]}}}"'
        )

    def _name(self, label: int) -> str:
        return "void" if label == VOID else self.class_names[label]


def _label(target: str | int, class_names: Sequence[str], setting: str) -> int:
    """The label that a setting names: by class name, number, or the word void."""
    if isinstance(target, bool):
        raise VocsegError(f"{setting}: YAML reads yes and no as {target}; put the class name in quotes.")
    if target in class_names:
        return list(class_names).index(str(target))
    if target == "void" or target == VOID:
        return VOID
    if isinstance(target, str) and target.isdecimal():
        target = int(target)
    if isinstance(target, int) and 0 <= target < len(class_names):
        return target
    listed = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
    raise VocsegError(
        f"{setting}: there is no class {target!r}; there are {listed}." + nearest(str(target), class_names)
    )


def _integer(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as error:
        raise VocsegError(f"labels: the values in mask files are whole numbers; got {value!r}.") from error


def _without_alpha(path: Path, pixels: np.ndarray) -> np.ndarray:
    colours, alpha = pixels[..., :-1], pixels[..., -1]
    if pixels.size and (colours == colours[0, 0]).all() and (alpha != alpha[0, 0]).any():
        raise VocsegError(
            f"The mask {path} has one colour, and only its alpha channel (transparency) varies. vocseg does not read "
            "labels from it: store the labels as a palette or grey PNG."
        )
    return colours[..., 0] if colours.shape[-1] == 1 else colours


def _integers(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Pixels of a grey image as integers."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8)
    if pixels.dtype.kind != "f":
        return pixels
    whole = np.isfinite(pixels) & (pixels == np.rint(pixels)) & (np.abs(pixels) < 2**31)
    if not whole.all():
        raise VocsegError(
            f"The mask {path} has values that are not whole numbers, for example {pixels[~whole][0]:g}: labels must be "
            "whole numbers. Store them as a palette or grey PNG."
        )
    return pixels.astype(np.int64)


def _eight_bits(path: Path, colours: np.ndarray) -> np.ndarray:
    """Colours as uint8. Those of 16 bits are 8-bit numbers, or these times 256 or 257."""
    if colours.dtype == np.uint8:
        return colours
    if colours.dtype != np.uint16:
        raise VocsegError(f"The mask {path} has colours of {colours.dtype}: store it as a palette, grey or RGB PNG.")
    return (colours if colours.max() < 256 else colours >> 8).astype(np.uint8)


def _packed(colours: np.ndarray) -> np.ndarray:
    """Colours [..., 3] as red * 2**16 + green * 2**8 + blue, int32 [...]."""
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _packed_colour(colour: Any) -> int:
    return int(_packed(np.asarray(colour)))


def _unpacked(colour: int) -> tuple[int, int, int]:
    return colour >> 16, (colour >> 8) & 255, colour & 255


def _listed(items: Sequence[Any]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(map(str, items[:SHOWN])) + more


def _flow(mapping: Mapping[int, str]) -> str:
    """A YAML mapping in one line, shortened after some entries."""
    entries = [f"{value}: {name}" for value, name in mapping.items()]
    return "{" + ", ".join(entries[:SHOWN]) + (", ..." if len(entries) > SHOWN else "") + "}"
