"""``vocseg sweep``."""

import argparse
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from vocseg.errors import ArgumentParser, VocsegError


def run_command(args: Sequence[str]) -> None:
    """Runs ``vocseg sweep ...``.

    Args:
        args: the words after ``vocseg sweep``.

    Raises:
        VocsegError: a mistake in them, or a run that failed.
    """
    parser = make_parser()
    words = [*args]
    file = words.pop(0) if words and not words[0].startswith("-") else None
    given, options = parser.parse_known_args(words)
    if given.check is not None:
        _check(given, file, options)
        return
    from vocseg.records import read_record
    from vocseg.sweep.files import write_files
    from vocseg.sweep.plan import begin_runs, check_words, counted, read_plan
    from vocseg.sweep.runner import execute, in_own_process, run_jobs
    from vocseg.sweep.summary import errors_rows, summarise, terminal_table

    plan = read_plan(
        file,
        name=given.name,
        folder=given.to,
        configs=given.config,
        seeds=given.seeds,
        sets=given.set,
        test=given.test,
        options=options,
    )
    check_words(plan)
    jobs = plan.jobs()
    print(f"{plan.size} = {counted(len(jobs), 'run')}, in {plan.folder}")
    if given.dry_run:
        for job in jobs:
            print(f"  vocseg fit {shlex.join(job.fit)}")
        return
    command = f"vocseg sweep {shlex.join(args)}"
    with _lock(plan.folder):
        begin_runs(plan)
        start = execute if given.in_process else in_own_process
        failed = run_jobs(jobs, start, partial(read_record, splits=plan.splits))
        summary = summarise(plan, failed)
        page = write_files(summary, command)
    console = Console()
    console = console if console.is_terminal else Console(width=120)
    console.print()
    console.print(terminal_table(summary, colours=console.is_terminal))
    print(f"\nPage    {page}\nTables  {plan.folder}/table.md, table.tex, settings.csv, runs.csv")
    if failed:
        lines = [f"  {name}: {error}" for name, error in errors_rows(summary)[1:]]
        raise VocsegError("\n".join([f"{len(failed)} of {len(jobs)} runs failed:", *lines]))


def _check(given: argparse.Namespace, file: str | None, options: Sequence[str]) -> None:
    from vocseg.sweep.check import check_record

    for name, value in (("the file", file), ("--config", given.config), ("--seeds", given.seeds), ("--set", given.set)):
        if value:
            raise VocsegError(f"--check takes all settings from the record: leave out {name}.")
    if not Path(given.check).is_dir():
        raise VocsegError(f"There is no record {given.check}: --check takes its folder.")
    folder = Path(given.to).expanduser() if given.to else Path("sweeps") / f"check-{Path(given.check).name}"
    with _lock(folder):
        check_record(Path(given.check), folder, options, in_process=given.in_process)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Keeps a second sweep out of a folder, also while the last run of a killed one saves its checkpoint."""
    try:
        import fcntl
    except ImportError:  # there is none on Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise VocsegError(f"{folder} cannot be written: {error.strerror}. Name another folder: --to") from error
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VocsegError(
                f"A sweep is running in {folder}, or the last run of a killed one is saving its checkpoint. Wait for "
                "it, or name another folder: --to"
            ) from None
        os.set_inheritable(file.fileno(), True)
        yield


def _true_or_false(text: str) -> bool:
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}")
    return text == "true"


def make_parser() -> ArgumentParser:
    """The options of ``vocseg sweep``; those of ``vocseg fit`` may follow them."""
    parser = ArgumentParser(
        prog="vocseg sweep",
        usage="vocseg sweep [FILE] [--config A B ...] [--seeds 0 1 2] [--set KEY=VALUE,VALUE ...] [options of fit]",
        description="Trains and scores many runs, one after the other, and compares them: mean and deviation over "
        "seeds, the best setting (chosen on val), differences with intervals, as a page and as tables. The same "
        "command resumes an interrupted sweep; finished runs are not run again, a failing one stops no other.",
        epilog="FILE is YAML and comes first: {name: rates, runs: {small: mobilenet, lite: {config: efficientnet_lite, "
        "set: {model.optimizer.lr: 1e-3}}}, seeds: [0, 1, 2], set: {data.root: /path/to/voc}, grid: {data.batch_size: "
        "[8, 16]}, test: true}. Every key but runs may be left out; flags override the file.",
    )
    switch: dict[str, Any] = {"nargs": "?", "const": True, "type": _true_or_false, "metavar": "true"}
    parser.add_argument("--config", nargs="+", default=[], help="configs or packaged experiments: a run for each")
    parser.add_argument("--seeds", nargs="+", type=int, default=[], help="train each run with each seed (default: 0)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of all runs; with values separated by commas, a run for each. Again for another setting: a "
        "run for each combination",
    )
    parser.add_argument(
        "--test", **switch, help="score the test split, too (default: false); it is never used to choose"
    )
    parser.add_argument("--name", help="of the sweep (default: the file's, or the configs')")
    parser.add_argument("--to", help="folder of the sweep (default: sweeps/<name>)")
    parser.add_argument("--dry_run", **switch, help="check all settings, print the runs, and train nothing")
    parser.add_argument(
        "--in_process",
        **switch,
        help="run in this process: saves the start of one for each run, but a crash of one ends the sweep",
    )
    parser.add_argument(
        "--check",
        metavar="RECORD",
        help="train a record's run again, and say how far it is reproduced: vocseg sweep --check "
        "experiments/results/baseline_leaky --data.root /path/to/voc",
    )
    return parser
