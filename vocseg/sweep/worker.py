"""``python -m vocseg.sweep.worker JOB REASON``: runs one job of a sweep in a process of its own."""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from vocseg.errors import VocsegError
from vocseg.saving import write_text
from vocseg.sweep.runner import execute, job_from, message_of


def main(job: Path, reason: Path) -> int:
    """Runs the job of a file.

    Args:
        job: the file.
        reason: file to write where the job fails: why, in words.

    Returns:
        The exit status.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        execute(job_from(job))
    except Exception as error:
        if not isinstance(error, VocsegError):
            traceback.print_exc()
        write_text(reason, message_of(error))
        return 1
    return 0


def _end_with_parent() -> None:
    """Ends this process as SIGTERM does, with a checkpoint, when the sweep that holds its input's other end is gone."""
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
