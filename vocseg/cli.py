"""The ``vocseg`` command."""

import argparse
import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from vocseg import __version__
from vocseg.errors import VocsegError, nearest
from vocseg.experiments import list_experiments

RESULTS = "experiments/results"

# Lightning is imported in run(): --help and --version must not wait for it.

COMMANDS = {
    "fit": "train a network: vocseg fit --config quickstart",
    "validate": "score a checkpoint on the validation split: vocseg validate --ckpt_path CKPT",
    "test": "score a checkpoint on the test split: vocseg test --ckpt_path CKPT",
    "predict": "write masks of your own images: vocseg predict --ckpt_path CKPT --data.predict_path IMAGES",
    "rows": "train the paper's rows, one after the other: vocseg rows [ROW ...] [options of fit]",
    "tables": "rebuild the paper's tables and figures from the rows' records: vocseg tables",
    "report": "make a page of runs' curves, scores and images: vocseg report RUN [RUN ...]",
    "experiments": "list the packaged experiments",
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: the words after ``vocseg``; those of this process if None.

    Returns:
        The exit status: 0, or 1 for a mistake in what was given, or 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        print(f"vocseg {__version__}")
        return 0
    try:
        if args[0] not in COMMANDS:
            raise VocsegError(f"There is no command {args[0]!r}.{nearest(args[0], COMMANDS)} See vocseg --help.")
        if args[0] == "experiments":
            for name, line in list_experiments():
                print(f"{name:<12} {line}")
            return 0
        if args[0] == "rows":
            return _rows(args[1:])
        if args[0] == "tables":
            return _tables(args[1:])
        if args[0] == "report":
            return _report(args[1:])
        from vocseg.lightning_cli import run

        run(args)
        return 0
    except VocsegError as error:
        # a loader's worker process hands an error over with its traceback
        message = str(error).rpartition(f"{VocsegError.__module__}.{VocsegError.__name__}: ")[2]
        print(f"vocseg: {message.strip()}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(
            f"vocseg: no room to write {error.filename or 'a file'}: {error.strerror}. Make room, and go on with "
            "vocseg fit ... --ckpt_path last",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("vocseg: interrupted", file=sys.stderr)
        return 130


def _rows(args: list[str]) -> int:
    parser = _Parser(
        prog="vocseg rows",
        usage="vocseg rows [ROW ...] [--results FOLDER] [options of vocseg fit, for all rows]",
        description="Trains, validates and tests rows of the paper's tables (experiments/paper/rows.yaml); each leaves "
        "a record. What has its record is not run again; what was interrupted goes on.",
        epilog="vocseg rows --data.root /path/to/voc runs every row that needs nothing special.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="row to run")
    parser.add_argument("--results", default=RESULTS, help="folder for the records (default: %(default)s)")
    given, options = parser.parse_known_args(args)
    from vocseg.paper.rows import run_rows

    failed = run_rows(given.rows, options, Path(given.results))
    if failed:
        raise VocsegError(f"These rows failed, for the reasons above: {', '.join(failed)}.")
    return 0


def _tables(args: list[str]) -> int:
    parser = _Parser(
        prog="vocseg tables",
        description="Rebuilds the tables (Markdown and CSV) and figures from the rows' records; trains nothing. A "
        "RESULTS.md beside the records gets the tables too, between its marks.",
    )
    parser.add_argument("--results", default=RESULTS, help="folder of the records (default: %(default)s)")
    parser.add_argument("--to", default=f"{Path(RESULTS).parent}/paper", help="folder to write (default: %(default)s)")
    parser.add_argument("--data.root", dest="root", help="the VOC tree; without it the figures of masks are not drawn")
    parser.add_argument("--data.year", dest="year", default="2007", help="of the tree (default: %(default)s)")
    given = parser.parse_args(args)
    from vocseg.paper.tables import write_tables

    problems = write_tables(Path(given.results), Path(given.to), given.root, given.year)
    print(f"Tables and figures written to {given.to}")
    if problems:
        raise VocsegError("\n".join(["Not everything could be reported:", *problems]))
    return 0


def _report(args: list[str]) -> int:
    parser = _Parser(
        prog="vocseg report",
        description="Writes one HTML page, which needs nothing beside it, and its figures: settings, curves, scores by "
        "class, confusion matrix, best and worst test images, and a comparison of several runs. Trains nothing.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or an experiment's name: its newest run"
    )
    parser.add_argument("--to", default=None, help="folder to write (default: report in the first run's folder)")
    given = parser.parse_args(args)
    from vocseg.report import write_report

    page, problems = write_report(given.runs, Path(given.to) if given.to else None)
    print(f"Report  {page}")
    if problems:
        raise VocsegError("\n".join(["Not everything could be reported:", *problems]))
    return 0


class _Parser(argparse.ArgumentParser):
    """Mistakes become VocsegError instead of usage and exit."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise VocsegError(f"{message} (see {self.prog} --help)")


def _help() -> str:
    lines = "\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items())
    return (
        "usage: vocseg COMMAND [options]\n\nSemantic segmentation on PASCAL VOC.\n\ncommands:\n"
        f"{lines}\n\nvocseg COMMAND --help tells a command's options; --version the version."
    )


if __name__ == "__main__":
    sys.exit(main())
