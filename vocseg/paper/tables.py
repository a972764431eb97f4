"""The paper's tables with our scores beside them, loss curves and masks, all from the records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vocseg.confusion import ConfusionMatrices, scores_of
from vocseg.data.files import read_mask
from vocseg.data.images import read_image
from vocseg.data.lists import find_tree
from vocseg.errors import VocsegError
from vocseg.intervals import bootstrap_interval
from vocseg.paper.protocol import paper_inferred
from vocseg.paper.records import read_record
from vocseg.paper.rows import Declared, Row, declared
from vocseg.plots import coloured, legend, losses_figure, panels, save_png
from vocseg.run_folder import SPLITS, Run
from vocseg.saving import write_text
from vocseg.text_tables import csv_table, markdown_table

BEGIN, END = "<!-- tables: written by `vocseg paper tables` -->", "<!-- end of tables -->"


@dataclass
class Scores:
    """Accuracy and IoU on val and test, each None where unknown."""

    val_accuracy: float | None = None
    val_iou: float | None = None
    test_accuracy: float | None = None
    test_iou: float | None = None

    def cell(self, split: str) -> str:
        """``accuracy / IoU`` of a split."""
        accuracy, iou = getattr(self, f"{split}_accuracy"), getattr(self, f"{split}_iou")
        return "" if accuracy is None and iou is None else f"{_text(accuracy)} / {_text(iou)}"


@dataclass
class Line:
    """One line of a table."""

    name: str
    settings: tuple[str, str, str] = ("", "", "")
    paper: Scores = field(default_factory=Scores)
    inferred: Scores = field(default_factory=Scores)
    record: Scores = field(default_factory=Scores)
    class_accuracy: Sequence[float] = ()  # mean over the classes, of record: on val and on test
    interval: tuple[float, float] | None = None
    epochs: str = ""
    best_epoch: str = ""
    minutes: str = ""
    device: str = ""
    note: str = ""


def write_tables(results: Path, folder: Path, root: str | None = None, year: str = "2007") -> list[str]:
    """Writes ``tables.md``, ``table_N.csv`` and ``figure_NN_*.png`` from the records; nothing is trained.

    Args:
        results: folder with a record for each row.
        folder: folder to write.
        root: of the VOC tree, whose images and masks the mask figures show; None: these figures are not drawn.
        year: of the tree.

    Returns:
        What could not be reported, one line each.

    Raises:
        VocsegError: there are no records, no VOC tree below ``root``, or ``folder`` has files of these names that this
            function did not write.
    """
    known = declared()
    records, problems = read_records(known, results)
    if not records:
        reasons = "".join(f"\n{problem}" for problem in problems)
        raise VocsegError(f"There are no records of rows in {results}. vocseg paper rows writes them.{reasons}")
    tables = {number: table_lines(known, records, number) for number in known.tables}
    text = "\n".join(markdown(f"Table {number}: {known.tables[number]['title']}", tables[number]) for number in tables)
    compared = compare(known, records)
    heading = "### Claims\n\nRow minus other row, and the difference's 95 % interval over the choice of images."
    text = f"{text}\n{heading}\n\n{markdown_table(compared)}\n"
    figures = best_rows(known, records)
    names = ["tables.md", "claims.csv", *(f"table_{number}.csv" for number in tables)]
    names += [f"figure_{number:02}_loss.png" for number in figures]
    names += [f"figure_{number + 1:02}_masks.png" for number in figures if root is not None]
    _check_replaceable(folder, names)
    write_text(folder / "tables.md", text)
    write_text(folder / "claims.csv", csv_table(compared))
    for number, lines in tables.items():
        write_text(folder / f"table_{number}.csv", as_csv(lines))
    document = results.parent / "RESULTS.md"
    if document.is_file() and BEGIN in document.read_text(encoding="utf-8"):
        before, _, rest = document.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if end:
            write_text(document, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
        else:
            problems.append(f"{document} has no line {END}: where its tables end is not known, and it is unchanged.")
    for number, row in figures.items():
        record = records[row.name]
        figure = losses_figure(record.lines, row.name, record.best_epoch)
        save_png(figure, folder / f"figure_{number:02}_loss.png")
        if root is not None and any(record.folder.test_masks.rglob("*.png")):
            draw_masks(record, row.name, _tree(root, year), folder / f"figure_{number + 1:02}_masks.png")
    return problems


def _check_replaceable(folder: Path, names: Sequence[str]) -> None:
    """Refuses to replace files in a folder whose ``tables.md`` is not of :func:`write_tables`."""
    existing = [folder / name for name in names if (folder / name).exists()]
    own = folder / "tables.md"
    if existing and not (own.is_file() and own.read_text(encoding="utf-8", errors="replace").startswith("### Table ")):
        raise VocsegError(
            f"{existing[0]} exists, and {own} is not of vocseg paper tables: nothing is replaced. Name another folder: "
            "--to"
        )


def read_records(known: Declared, results: Path) -> tuple[dict[str, Run], list[str]]:
    """Reads the declared rows' records.

    Returns:
        Those that can be read, and what is wrong with the others. A record whose classes differ from those of most
        others is left out.
    """
    records, problems = {}, []
    for name in known.rows:
        if (results / name).exists():
            try:
                records[name] = read_record(results / name)
            except VocsegError as error:
                problems.append(str(error))
    if records:
        classes = Counter(tuple(record.class_names) for record in records.values()).most_common(1)[0][0]
        for name, record in list(records.items()):
            if tuple(record.class_names) != classes:
                del records[name]
                problems.append(
                    f"The record {results / name} is of other classes than the rest "
                    f"({len(record.class_names)} instead of {len(classes)}): left out."
                )
    return records, problems


def table_lines(known: Declared, records: dict[str, Run], number: int) -> list[Line]:
    """The lines of one table: the all-background row, then the declared ones."""
    first = next(iter(records.values()))
    floor = {split: scores_of(_matrices(first, split).all_background().total()) for split in SPLITS}
    lines = [
        Line(
            "all background",
            inferred=_scores({split: paper_inferred(_resized(first, split).all_background()) for split in SPLITS}),
            record=_scores(floor),
            class_accuracy=[floor[split]["mean_accuracy"] for split in SPLITS],
        )
    ]
    for row in known.rows.values():
        if row.table == number:
            lines.append(_line(row, records.get(row.name)))
    return lines


def _line(row: Row, record: Run | None) -> Line:
    paper = Scores(*row.paper) if row.paper else Scores()
    options = row.options
    rate, decay = (f"{float(options[f'model.optimizer.{name}']):g}" for name in ("lr", "weight_decay"))
    settings = (options["model.decoder.activation"], rate, decay)
    if record is None:
        needs = f": needs {row.needs}" if row.needs else ""
        return Line(row.name, settings, paper, epochs=f"not run{needs}", note=row.choice)
    model = record.configs[0]["model"]
    model = model.get("init_args", model)  # records of vocseg 0.1.0 name no class
    optimizer = model["optimizer"]["init_args"]
    activation = model["decoder"]["init_args"].get("activation", settings[0])
    of_record = {split: scores_of(_matrices(record, split).total()) for split in SPLITS}
    return Line(
        row.name,
        (activation, f"{optimizer['lr']:g}", f"{optimizer['weight_decay']:g}"),
        paper,
        _scores({split: paper_inferred(_resized(record, split)) for split in SPLITS}),
        _scores(of_record),
        [of_record[split]["mean_accuracy"] for split in SPLITS],
        bootstrap_interval(_matrices(record, "test")),
        str(record.facts["epochs"]),
        str(record.facts["best_epoch"]),
        str(record.facts["minutes"]),
        f"{record.facts['device']}, {record.facts['precision']}",
        row.choice,
    )


def _scores(of_splits: dict[str, dict[str, float]]) -> Scores:
    return Scores(
        of_splits["val"]["pixel_accuracy"],
        of_splits["val"]["miou"],
        of_splits["test"]["pixel_accuracy"],
        of_splits["test"]["miou"],
    )


def compare(known: Declared, records: dict[str, Run]) -> list[list[str]]:
    """The differences between the rows that test the paper's claims, a heading first."""
    head = ["claim", "row", "other row", "val mIoU", "95 %", "val accuracy", "test mIoU", "95 %", "test accuracy"]
    lines = [head]
    for claim, pairs in known.claims.items():
        for row, other in pairs:
            if row not in records or other not in records:
                lines.append([claim, row, other, "not run", *[""] * 5])
                continue
            differences: list[str] = []
            for split in SPLITS:
                ours, theirs = (_matrices(records[name], split) for name in (row, other))
                a, b = scores_of(ours.total()), scores_of(theirs.total())
                low, high = bootstrap_interval(ours, minus=theirs)
                differences += [f"{a['miou'] - b['miou']:+.4f}", f"{low:+.4f} to {high:+.4f}"]
                differences.append(f"{a['pixel_accuracy'] - b['pixel_accuracy']:+.4f}")
            lines.append([claim, row, other, *differences])
    return lines


def markdown(title: str, lines: Sequence[Line]) -> str:
    """A table in Markdown, with the choices and devices below it."""
    head = [
        *("row", "activation", "rate", "L2", "paper, val", "paper, test", "ours, `paper_inferred`, val", "test"),
        *("ours, of record, val", "test", "class accuracy, val / test", "95 % of test mIoU"),
        *("epochs", "best", "minutes"),
    ]
    rows = [head]
    for line in lines:
        interval = f"{line.interval[0]:.4f} to {line.interval[1]:.4f}" if line.interval else ""
        pairs = [scores.cell(split) for scores in (line.paper, line.inferred, line.record) for split in SPLITS]
        class_accuracy = " / ".join(map(_text, line.class_accuracy))
        ends = [line.epochs, line.best_epoch, line.minutes]
        rows.append([line.name, *line.settings, *pairs, class_accuracy, interval, *ends])
    devices = sorted({line.device for line in lines if line.device})
    notes = [f"- {line.name}: {line.note}" for line in lines if line.note]
    notes += [f"- Run on: {device}" for device in devices]
    pairs_are = "Each pair is accuracy / IoU, unless its column says otherwise."
    text = "".join(f"{note}\n" for note in notes)
    return f"### {title}\n\n{pairs_are}\n\n{markdown_table(rows)}\n\n{text}"


def as_csv(lines: Sequence[Line]) -> str:
    """A table as CSV, a column for each figure."""
    splits = [f"{split}_{figure}" for split in SPLITS for figure in ("accuracy", "iou")]
    kinds = ("paper", "paper_inferred", "of_record")
    rows = [
        ["row", "activation", "lr", "weight_decay"]
        + [f"{kind}_{name}" for kind in kinds for name in splits]
        + [f"of_record_{split}_class_accuracy" for split in SPLITS]
        + ["test_iou_low", "test_iou_high", "epochs", "best_epoch", "minutes", "device", "note"]
    ]
    for line in lines:
        scores = (line.paper, line.inferred, line.record)
        interval = [f"{end:.4f}" for end in line.interval] if line.interval else ["", ""]
        figures = [_text(getattr(kind, name), missing="") for kind in scores for name in splits]
        figures += [f"{value:.4f}" for value in line.class_accuracy] or [""] * len(SPLITS)
        ends = [line.epochs, line.best_epoch, line.minutes, line.device, line.note]
        rows.append([line.name, *line.settings, *figures, *interval, *ends])
    return csv_table(rows)


def best_rows(known: Declared, records: dict[str, Run]) -> dict[int, Row]:
    """The row with the best val mIoU among those of each of the paper's figures, by the figure's number."""
    best: dict[int, Row] = {}
    for name, record in records.items():
        row = known.rows[name]
        number = row.figure or known.tables[row.table].get("figure")
        if number and (number not in best or _miou(record) > _miou(records[best[number].name])):
            best[number] = row
    return dict(sorted(best.items()))


def _miou(record: Run) -> float:
    return scores_of(_matrices(record, "val").total())["miou"]


def _matrices(record: Run, split: str) -> ConfusionMatrices:
    matrices = record.scores[split].matrices
    assert matrices is not None, "read_record() checks that they are there"
    return matrices


def _resized(record: Run, split: str) -> ConfusionMatrices:
    matrices = record.scores[split].resized
    assert matrices is not None, "read_record() checks that they are there"
    return matrices


def draw_masks(record: Run, title: str, tree: Path, path: Path) -> None:
    """Draws image, truth and prediction of the test images whose masks were kept."""
    rows, labels = [], []
    for file in sorted(record.folder.test_masks.rglob("*.png")):
        name = file.relative_to(record.folder.test_masks).with_name(file.stem).as_posix()
        image = next(iter(sorted((tree / "JPEGImages").glob(f"{name}.*"))), None)
        if image is None:
            raise VocsegError(f"The record {record.folder.path} shows {name}, which {tree} does not have.")
        truth, prediction = read_mask(tree / "SegmentationClass" / f"{name}.png"), read_mask(file)
        labels += [truth, prediction]
        rows.append((read_image(image), coloured(truth), coloured(prediction)))
    entries = legend(labels, record.class_names)
    save_png(panels(rows, ("image", "truth", title), entries, width=200), path)


def _tree(root: str, year: str) -> Path:
    tree = find_tree(Path(root).expanduser(), year)
    if tree is None:
        raise VocsegError(f"There is no VOC{year} tree below {root}: the mask figures need its images.")
    return tree


def _text(value: float | None, missing: str = "?") -> str:
    return missing if value is None else f"{value:.4f}"
