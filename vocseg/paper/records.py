"""Records of the paper's rows: those of :mod:`vocseg.records`, with the matrices under the paper's protocol."""

from pathlib import Path

from vocseg import records
from vocseg.run_folder import SPLITS, Run


def read_record(folder: Path) -> Run:
    """Reads the record of a row.

    Raises:
        VocsegError: there is none, or a file is missing or broken.
    """
    return records.read_record(folder, SPLITS, resized=True)
