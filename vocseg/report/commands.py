"""``vocseg report``."""

from collections.abc import Sequence
from pathlib import Path

from vocseg.errors import ArgumentParser, VocsegError


def make_parser() -> ArgumentParser:
    """The options of ``vocseg report``."""
    parser = ArgumentParser(
        prog="vocseg report",
        description="Writes one self-contained HTML page: scores with intervals, confusion matrix, curves, the best, "
        "the worst and the most surprising test images, and a comparison of several runs. Trains nothing.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's folder, or an experiment's name: its newest run"
    )
    parser.add_argument("--to", default=None, help="folder to write (default: report in the first run's folder)")
    return parser


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg report ...``.

    Args:
        args: the words after ``vocseg report``.

    Raises:
        VocsegError: a mistake in them, or something that could not be reported.
    """
    given = make_parser().parse_args(args)
    from vocseg.report.page import write_report

    page, problems = write_report(given.runs, Path(given.to) if given.to else None)
    print(f"Report  {page}")
    if problems:
        raise VocsegError("\n".join(["Not everything could be reported:", *problems]))
