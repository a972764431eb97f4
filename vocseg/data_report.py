"""``vocseg inspect``: what a data module finds on disk, as tables and as a page with samples, before any training."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import yaml
from jsonargparse import ArgumentError
from lightning.pytorch.cli import LightningArgumentParser
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import vocseg.data.folder
import vocseg.data.synthetic  # noqa: F401  (both imported so that --data can name their classes without the modules)
from vocseg import pages
from vocseg.cli_errors import explain
from vocseg.components import class_path_of
from vocseg.data.base import SegmentationDataModule
from vocseg.data.checks import find_label_problems
from vocseg.data.files import CheckedSample, Sample, examine_samples, read_sample
from vocseg.data.labels import VOC_PALETTE, VOID
from vocseg.data.voc import VOCDataModule
from vocseg.errors import VocsegError
from vocseg.experiments import resolve_config
from vocseg.options import ConfigFile, scan, unwrap, with_nested_nulls, with_voc_for_a_root
from vocseg.plots import coloured
from vocseg.saving import OwnedFolder, write_text

SHOWN = 12
"""Number of samples on the page."""
NAMED = 5
"""Number of odd files of one kind that are named."""
WIDTH = 240
"""Largest side of an image on the page in pixels."""

PAGE = "index.html"
_OWNER = ("inspect", "Name another folder with --to.")


@dataclass(frozen=True)
class Split:
    """The samples of one role (train, val, test).

    Attributes:
        role: of the samples.
        samples: those that can be read, and what is in them.
        odd: those that cannot be used, and why.
    """

    role: str
    samples: list[tuple[Sample, CheckedSample]]
    odd: list[tuple[Sample, VocsegError]]

    @property
    def counts(self) -> np.ndarray:
        """The pixels of each label in each readable mask, int64 [N, 256]."""
        return np.array([found.counts for _, found in self.samples], dtype=np.int64).reshape(-1, 256)


@dataclass(frozen=True)
class Findings:
    """All splits that a data module has, and what the checks say of them."""

    splits: list[Split]
    errors: list[str]
    notes: list[str]


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg inspect``.

    Args:
        args: the words after ``vocseg inspect``.

    Raises:
        VocsegError: a mistake in them, or data that ``vocseg fit`` could not use.
    """
    datamodule, folder = _parse(args)
    OwnedFolder(folder, *_OWNER).check([folder / PAGE])
    datamodule.prepare_data()
    findings = inspect_data(datamodule)
    print("\n".join(f"{title:<8}{text}" for title, text in _summary(datamodule, findings)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    for title, head, rows in (_splits_table(findings), _classes_table(datamodule, findings)):
        table = Table(title=title, title_justify="left", box=box.HEAVY_HEAD if console.is_terminal else box.ASCII)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))  # not markup: a class may have brackets in its name
        console.print(table)
    for note in findings.notes:
        print(f"Note    {note}")
    print(f"Page    {write_page(datamodule, findings, folder)}")
    if findings.errors:
        raise VocsegError("\n".join(["This data cannot be used as it is:", *findings.errors]))


def inspect_data(datamodule: SegmentationDataModule) -> Findings:
    """Reads every file of every split, and checks the labels.

    Args:
        datamodule: its ``prepare_data`` was called; its ``setup`` need not be.

    Returns:
        What was found. Files that cannot be used are counted and do not end the inspection.

    Raises:
        VocsegError: there is no split at all.
    """
    splits: list[Split] = []
    errors: list[str] = []
    notes: list[str] = []
    for role in ("train", "val", "test"):
        try:
            samples = datamodule.used_samples(role)
        except VocsegError as error:
            (notes if role == "test" else errors).append(str(error))
            continue
        outcomes = list(
            zip(samples, examine_samples(samples, datamodule.mask_reader, datamodule.image_reader), strict=True)
        )
        splits.append(
            Split(
                role,
                [(sample, found) for sample, found in outcomes if isinstance(found, CheckedSample)],
                [(sample, error) for sample, error in outcomes if isinstance(error, VocsegError)],
            )
        )
    if not splits:
        raise VocsegError("\n".join(dict.fromkeys(errors)))
    for split in splits:
        errors += _odd_files(split)
    found = find_label_problems(
        {split.role: [found for _, found in split.samples] for split in splits},
        datamodule.mask_reader,
        default_classes=datamodule.has_default_classes,
    )
    return Findings(splits, [*dict.fromkeys(errors), *found[0]], [*notes, *found[1]])


def write_page(datamodule: SegmentationDataModule, findings: Findings, folder: Path) -> Path:
    """Writes the page: the tables, and samples with their masks and a legend.

    Args:
        datamodule: names the classes and reads the samples.
        findings: of the same data module.
        folder: the folder to write, created if it does not exist.

    Returns:
        The page.

    Raises:
        VocsegError: the folder has a file of this name that ``vocseg inspect`` did not write.
    """
    body = ["<p>", *(f"{title}: {pages.text(what)}<br>" for title, what in _summary(datamodule, findings)), "</p>"]
    body += [f'<p class="problem">{pages.text(error)}</p>' for error in findings.errors]
    body += [f"<p>{pages.text(note)}</p>" for note in findings.notes]
    for title, head, rows in (_splits_table(findings), _classes_table(datamodule, findings)):
        body += [f"<h2>{title}</h2>", pages.table(head, rows)]
    body += _samples(datamodule, findings)
    write_text(folder / PAGE, pages.page("Data", body), OwnedFolder(folder, *_OWNER).write)
    return folder / PAGE


def make_parser(configs: Sequence[str] = ()) -> LightningArgumentParser:
    """The options of ``vocseg inspect``; ``configs`` are named in errors."""

    class DataOfConfig(ConfigFile):
        """``--config``, of which only the data and the seed are used."""

        def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
            if not values.lstrip().startswith("{"):
                values = Path(resolve_config(values)).read_text(encoding="utf-8", errors="replace")
            try:
                content = yaml.safe_load(values) or {}
                used = {name: content[name] for name in ("seed_everything", "data") if name in content}
            except (yaml.YAMLError, TypeError) as error:
                reason = " ".join(str(error).split())
                raise VocsegError(f"A config is not valid YAML ({', '.join(configs)}): {reason}") from error
            super().__call__(parser, cfg, yaml.safe_dump(used, default_flow_style=True), option_string)

    parser = LightningArgumentParser(
        prog="vocseg inspect",
        description="Reads every file of a data set, prints what was found, and writes a page of samples with their "
        "masks. Trains nothing. The options of the data are those of vocseg fit.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", action=DataOfConfig, help="A config file, or a packaged experiment's name.")
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="The seed of the data's random draws.")
    parser.add_argument("--to", type=str, default="inspect", help="The folder of the page (default: inspect).")
    parser.add_lightning_class_args(L.LightningDataModule, "data", subclass_mode=True)
    parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)
    return parser


def _parse(args: Sequence[str]) -> tuple[SegmentationDataModule, Path]:
    """The data module and the page's folder that the options name."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a config can name classes in the current folder
    options = with_nested_nulls([str(word) for word in args])
    found = scan(options)
    options = with_voc_for_a_root(options, found, found.data_class)

    parser = make_parser(found.configs)
    try:
        settings = parser.parse_args(["--data", class_path_of(VOCDataModule), *options])
        datamodule = parser.instantiate(settings).data
    except ArgumentError as error:
        raise VocsegError(explain(error.message, found.configs, parser)) from error
    except (ValueError, ModuleNotFoundError) as error:
        cause = unwrap(error)
        if cause is error:
            raise
        raise cause from None
    if not isinstance(datamodule, SegmentationDataModule):
        raise VocsegError(
            f"{class_path_of(type(datamodule))} cannot be inspected: it does not derive from SegmentationDataModule."
        )
    return datamodule, Path(settings.to).expanduser()


def _odd_files(split: Split) -> list[str]:
    """The files that cannot be used, by kind: messages that differ only in paths and numbers are of one kind."""
    kinds: dict[str, list[str]] = {}
    for sample, error in split.odd:
        message = str(error)
        kind = message.replace(str(sample.image), "").replace(str(sample.mask), "")
        kinds.setdefault(re.sub(r"\d+", "", kind), []).append(message)
    lines = []
    for messages in kinds.values():
        lines += messages[:NAMED]
        if len(messages) > NAMED:
            lines.append(f"... and {len(messages) - NAMED} more {split.role} files like these ({len(messages)} in all)")
    return lines


def _summary(datamodule: SegmentationDataModule, findings: Findings) -> list[tuple[str, str]]:
    """What the data is, where it lies, and how it is read."""
    samples = [sample for split in findings.splits for sample, _ in [*split.samples, *split.odd]]
    lines = [("Data", type(datamodule).__name__)]
    if hasattr(datamodule, "root"):
        lines.append(("Root", str(datamodule.root)))
    for title, paths in (("Images", [s.image for s in samples]), ("Masks", [s.mask for s in samples])):
        folder = os.path.commonpath([path.parent for path in paths]) if paths else "none"
        lines.append((title, f"{folder} ({_counted(path.suffix.lower() for path in paths)})"))
    read_by = _counted(f"by {found.read_by}" for split in findings.splits for _, found in split.samples)
    return [*lines, ("Labels", f"{len(datamodule.class_names)} classes; masks read: {read_by}")]


def _counted(words: Iterable[str]) -> str:
    """How often each word occurs, most frequent first: ``20 .jpg, 3 .png``."""
    return ", ".join(f"{number} {word}" for word, number in Counter(words).most_common()) or "none"


Tabular = tuple[str, list[str], list[list[str]]]
"""A table: its title, its head and its rows."""


def _splits_table(findings: Findings) -> Tabular:
    rows = []
    for split in findings.splits:
        sizes = sorted((found.size for _, found in split.samples), key=lambda size: size[0] * size[1])
        counts = split.counts
        rows.append(
            [
                split.role,
                str(len(split.samples) + len(split.odd)),
                *("{1}x{0}".format(*sizes[index]) if sizes else "-" for index in (0, len(sizes) // 2, len(sizes) - 1)),
                _percent(counts[:, VOID].sum(), counts.sum()),
                str(len(split.odd)),
            ]
        )
    head = ["split", "images", "smallest", "median", "largest", "void", "odd files"]
    return "Splits", head, rows


def _classes_table(datamodule: SegmentationDataModule, findings: Findings) -> Tabular:
    """Share of the pixels and number of images of each class in each split."""
    labels = [*enumerate(datamodule.class_names), (VOID, "void")]
    counted = [split.counts for split in findings.splits]
    rows = []
    for label, name in labels:
        row = [name, str(label)]
        for counts in counted:
            row += [_percent(counts[:, label].sum(), counts.sum()), str(np.count_nonzero(counts[:, label]))]
        rows.append(row)
    head = ["class", "label"]
    for split in findings.splits:
        head += [f"{split.role}: pixels", "images"]
    return "Classes", head, rows


def _samples(datamodule: SegmentationDataModule, findings: Findings) -> list[str]:
    """A legend, and samples that together show as many classes as possible."""
    chosen = _choose([(split.role, *pair) for split in findings.splits for pair in split.samples])
    occurring = sorted({label for *_, found in chosen for label in np.flatnonzero(found.counts).tolist()})
    names = {**dict(enumerate(datamodule.class_names)), VOID: "void"}
    legend = "".join(
        f'<span style="display: inline-block; margin-right: 1rem"><span style="border: 1px solid #888; background: '
        f'rgb{tuple(VOC_PALETTE[label].tolist())}">&emsp;</span> {label} {pages.text(names[label])}</span>\n'
        for label in occurring
    )
    narrow = "<style>figcaption { width: 0; min-width: 100%; }</style>"  # no caption is wider than its image
    body = [narrow, f"<h2>{len(chosen)} samples</h2>", f"<p>{legend}</p>"]
    for role, sample, found in chosen:
        image, mask = read_sample(sample, datamodule.mask_reader, datamodule.image_reader)
        size = image.shape[1], image.shape[0]
        scale = min(1.0, WIDTH / max(size))
        shown = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
        drawn = np.array(Image.fromarray(image).resize(shown, Image.Resampling.BOX))
        labels = np.array(Image.fromarray(mask).resize(shown, Image.Resampling.NEAREST))
        classes = ", ".join(names[label] for label in np.flatnonzero(found.counts).tolist())
        name = f"{role}: {sample.name or sample.image.name}"
        figures = pages.picture(drawn, name, "JPEG") + pages.picture(coloured(labels), classes)
        body.append(f'<span style="display: inline-block">{figures}</span>')
    return body


def _choose(samples: Sequence[tuple[str, Sample, CheckedSample]]) -> list[tuple[str, Sample, CheckedSample]]:
    """At most ``SHOWN`` samples: first those that add most classes, then others at even distances."""
    occurs = np.array([found.counts > 0 for *_, found in samples], dtype=bool).reshape(-1, 256)
    chosen: list[int] = []
    shown = np.zeros(256, dtype=bool)
    while len(chosen) < SHOWN and (occurs & ~shown).any():
        chosen.append(int((occurs & ~shown).sum(1).argmax()))
        shown |= occurs[chosen[-1]]
    others = [index for index in range(len(samples)) if index not in chosen]
    wanted = min(SHOWN - len(chosen), len(others))
    chosen += [others[number * len(others) // wanted] for number in range(wanted)]
    return [samples[index] for index in sorted(chosen)]


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"
