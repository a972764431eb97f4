"""``vocseg paper rows`` and ``vocseg paper tables``."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from vocseg.errors import ArgumentParser, VocsegError, nearest

RESULTS = "experiments/results"
COMMANDS = {
    "rows": "train the rows of the paper's tables, one after the other: vocseg paper rows [ROW ...] [options of fit]",
    "tables": "rebuild the paper's tables and figures from the rows' records: vocseg paper tables",
}


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg paper ...``.

    Args:
        args: the words after ``vocseg paper``.

    Raises:
        VocsegError: a mistake in them, or a row that failed.
    """
    if not args or args[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
        print(f"usage: vocseg paper COMMAND [options]\n\n{lines}\n\nvocseg paper COMMAND --help lists its options.")
    elif args[0] == "rows":
        _rows(args[1:])
    elif args[0] == "tables":
        _tables(args[1:])
    else:
        suggestion = nearest(args[0], COMMANDS)
        raise VocsegError(f"There is no command 'paper {args[0]}'.{suggestion} See vocseg paper --help.")


def make_parser(command: str) -> ArgumentParser:
    """The options of ``vocseg paper rows`` or ``vocseg paper tables``."""
    if command == "rows":
        parser = ArgumentParser(
            prog="vocseg paper rows",
            usage="vocseg paper rows [ROW ...] [--results FOLDER] [options of vocseg fit, for all rows]",
            description="Trains, validates and tests rows of the paper's tables (experiments/paper/rows.yaml) and "
            "writes a record of each. A row with a record is not run again; an interrupted one is resumed.",
            epilog="The names of rows come first. vocseg paper rows --data.root /path/to/voc runs every row that needs "
            "nothing special.",
        )
        parser.add_argument("--results", default=RESULTS, help="folder for the records (default: %(default)s)")
        return parser
    parser = ArgumentParser(
        prog="vocseg paper tables",
        description="Rebuilds the tables (Markdown and CSV) and figures from the rows' records; trains nothing. A "
        "RESULTS.md beside the records gets the tables too, between its markers.",
    )
    parser.add_argument("--results", default=RESULTS, help="folder of the records (default: %(default)s)")
    parser.add_argument("--to", default=f"{Path(RESULTS).parent}/paper", help="folder to write (default: %(default)s)")
    parser.add_argument("--data.root", dest="root", help="the VOC tree; without it the figures of masks are not drawn")
    parser.add_argument("--data.year", dest="year", default="2007", help="of the tree (default: %(default)s)")
    return parser


def _rows(args: Sequence[str]) -> None:
    # by hand: argparse would take the value of an option that it does not know, such as --data.root, as a row
    names = [*takewhile(lambda word: not word.startswith("-"), args)]
    given, options = make_parser("rows").parse_known_args(args[len(names) :])
    from vocseg.paper.rows import run_rows

    failed = run_rows(names, options, Path(given.results))
    if failed:
        raise VocsegError(f"These rows failed, for the reasons above: {', '.join(failed)}.")


def _tables(args: Sequence[str]) -> None:
    given = make_parser("tables").parse_args(args)
    from vocseg.paper.tables import write_tables

    problems = write_tables(Path(given.results), Path(given.to), given.root, given.year)
    print(f"Tables and figures written to {given.to}")
    if problems:
        raise VocsegError("\n".join(["Not everything could be reported:", *problems]))
