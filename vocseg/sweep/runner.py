"""Runs jobs one after the other: each is a fit, the scores of its best checkpoint, and a record."""

import json
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vocseg.confusion import ConfusionMatrices
from vocseg.errors import VocsegError
from vocseg.initialization import checkpoint_of
from vocseg.lightning_cli import VocsegCLI, run
from vocseg.records import check_replaceable, provenance, read_record, write_record
from vocseg.run_folder import SPLITS, Run, RunFolder, read_run
from vocseg.saving import write_json


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: of the run.
        record: folder of its record.
        fit: the words after ``vocseg fit``.
        scoring: further words of ``vocseg validate`` and ``vocseg test``; all other settings are in the checkpoint.
        splits: to score: ``val``, ``test``.
        facts: first entries of ``record.json``.
    """

    name: str
    record: str
    fit: Sequence[str]
    scoring: Sequence[str] = ()
    splits: Sequence[str] = SPLITS
    facts: Mapping[str, Any] = field(default_factory=dict)


Extras = Callable[[RunFolder, dict[str, VocsegCLI]], tuple[Mapping[str, ConfusionMatrices], Sequence[Path]]]
"""From the run's folder and the scored splits: what else :func:`vocseg.records.write_record` keeps."""


def run_jobs(
    jobs: Sequence[Job], start: Callable[[Job], None], read: Callable[[Path], Run] = read_record
) -> dict[str, str]:
    """Runs jobs one after the other; a job with a complete record is not run again, a failing one stops no other.

    Args:
        jobs: the jobs.
        start: runs one: :func:`execute`, or :func:`in_own_process`.
        read: reads a record, and raises :class:`VocsegError` where it is not complete.

    Returns:
        Why jobs failed, by their names.
    """
    failed = {}
    for number, job in enumerate(jobs, start=1):
        print(f"\n[{number} of {len(jobs)}] {job.name}", flush=True)
        if _finished(Path(job.record), read):
            print(f"{job.record} has a record: not run again (delete it to do so).")
            continue
        try:
            start(job)
            print(f"Recorded in {job.record}", flush=True)
        except VocsegError as error:
            failed[job.name] = message_of(error)
            print(f"{job.name} failed: {failed[job.name]}", flush=True)
        except Exception as error:  # whatever goes wrong in one job, the others must run
            failed[job.name] = message_of(error)
            traceback.print_exc()
    return failed


def _finished(folder: Path, read: Callable[[Path], Run]) -> bool:
    if not folder.exists():
        return False
    try:
        read(folder)
    except VocsegError as error:
        print(f"{error} Run again.")
        return False
    return True


def execute(job: Job, extras: Extras | None = None) -> None:
    """Runs a job in this process; one that was interrupted is resumed from its last checkpoint.

    Raises:
        VocsegError: a mistake in its settings, or what the run itself reports.
    """
    folder = Path(job.record)
    check_replaceable(folder)
    fit = run(["fit", *job.fit, "--ckpt_path", "auto"])
    run_folder = RunFolder(Path(fit.trainer.log_dir or "."))
    scoring = ["--ckpt_path", str(checkpoint_of(run_folder.path)), *job.scoring]
    commands = {"val": "validate", "test": "test"}
    scored = {split: run([commands[split], *scoring]) for split in job.splits}
    if not fit.trainer.is_global_zero:
        return
    trained = read_run(run_folder)
    facts = {
        **job.facts,
        "seed": fit.config["fit"]["seed_everything"],
        "epochs": len(trained.lines),
        "best_epoch": trained.best_epoch,
        "minutes": round(sum(line["seconds"] for line in trained.lines) / 60, 1),
        **provenance(fit.trainer),
    }
    resized, masks = extras(run_folder, scored) if extras else ({}, ())
    results = {split: cli.model.results[split] for split, cli in scored.items()}
    write_record(folder, run_folder, results, resized, facts, fit.model.class_names, masks)


def in_own_process(job: Job) -> None:
    """Runs a job in a process of its own, which shares the terminal: its crash does not end this one.

    The new process ends, after it has saved a checkpoint, when this one does.

    Raises:
        VocsegError: the job failed, or its process crashed.
        KeyboardInterrupt: Ctrl-C; the job has saved a checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, reason = Path(folder) / "job.json", Path(folder) / "error.txt"
        write_json(file, asdict(job))
        words = [sys.executable, "-m", "vocseg.sweep.worker", str(file), str(reason)]
        # close_fds: it inherits the lock on the sweep's folder
        process = subprocess.Popen(words, stdin=subprocess.PIPE, close_fds=False)
        assert process.stdin is not None, "it is a pipe"
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.stdin.close()  # ends it where Ctrl-C did not reach it
            process.wait()
            raise
        finally:
            process.stdin.close()
        if reason.is_file():
            raise VocsegError(reason.read_text(encoding="utf-8"))
    if status:
        raise VocsegError(_crash(status))


def _crash(status: int) -> str:
    number = -status if status < 0 else status - 128
    name = signal.Signals(number).name if number in {*signal.Signals} else ""
    if name == "SIGKILL":
        return "its process was killed (SIGKILL), as the system does when memory runs out. The same command resumes it."
    return f"its process ended with {name or f'status {status}'}. The same command resumes it."


def job_from(path: Path) -> Job:
    """Reads the job that :func:`in_own_process` wrote."""
    return Job(**json.loads(path.read_text(encoding="utf-8")))


def message_of(error: BaseException) -> str:
    """What went wrong, without the traceback that an error in a data loader's process carries."""
    text = str(error)
    if isinstance(error, VocsegError):
        return text.rpartition(f"{VocsegError.__module__}.{VocsegError.__name__}: ")[2].strip()
    return f"{type(error).__name__}: {text.strip()}"
