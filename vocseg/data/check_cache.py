"""What the check of image and mask files found, kept between runs: files that have not changed are checked only once.

It is in ``vocseg/checks-1.sqlite`` in the user's cache folder, which may be deleted at any time. Nothing here raises an
error because of the cache: without a usable one every file is checked, as in a first run.
"""

import json
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

from vocseg import __version__
from vocseg.data.files import CheckedSample, Sample, examine_samples, raise_broken
from vocseg.data.images import ImageReader
from vocseg.data.masks import MaskReader
from vocseg.errors import VocsegError

ENTRIES = 500_000
"""The oldest entries beyond this number are deleted; with 200 bytes each the file has about 100 MB at most."""
LARGEST = 10_000
"""Characters of an entry that is still kept; usual ones have 50 to 200."""
SETTLED = 2.0
"""Files that changed less than this many seconds before their check are checked again in the next run.

They may change once more without another time stamp: some file systems round it to two seconds.
"""
TIMEOUT = 2.0
"""Seconds to wait for another process that writes."""
KEYS_AT_ONCE = 500
"""Keys per query; old versions of SQLite allow 999."""
SAMPLES_AT_ONCE = 5_000
"""Samples that are checked before what was found is written: an interrupted check continues there."""

Answer = TypeVar("Answer")


def check_samples_once(
    samples: Sequence[Sample], masks: MaskReader, images: ImageReader, *, keep: bool = False
) -> list[CheckedSample]:
    """As :func:`vocseg.data.files.check_samples`, but does not read files that were checked in an earlier run.

    Files are checked again if a path, a size or a time of change differs, or a setting of the readers, or the version
    of vocseg. Broken files are always checked again. With ``keep`` all files are read.

    Raises:
        VocsegError: files are broken; the message names the first five and counts the others.
    """
    keys = _keys(samples, masks, images)
    known = {} if keep else _load([key for key in keys if key is not None])
    outcomes = [known.get(key) if key is not None else None for key in keys]
    unknown = [index for index, outcome in enumerate(outcomes) if outcome is None]
    checked: dict[int, CheckedSample | VocsegError] = {}
    for first in range(0, len(unknown), SAMPLES_AT_ONCE):
        part = unknown[first : first + SAMPLES_AT_ONCE]
        found = examine_samples([samples[index] for index in part], masks, images, keep=keep)
        checked.update(zip(part, found, strict=True))
        _store({key: outcome for index, outcome in zip(part, found, strict=True) if (key := keys[index]) is not None})
    return raise_broken([checked[index] if outcome is None else outcome for index, outcome in enumerate(outcomes)])


def _keys(samples: Sequence[Sample], masks: MaskReader, images: ImageReader) -> list[bytes | None]:
    """The keys of samples; None where nothing is to be kept.

    That is so where a file is missing or has just changed, or a reader is of a class of the user's own, whose settings
    are not known.
    """
    if type(masks) is not MaskReader or type(images) is not ImageReader:
        return [None] * len(samples)
    settings = [
        *(__version__, images.bit_depth, images.exif_rotation, masks.exif_rotation, len(masks.class_names)),
        *(sorted(masks.labels.items()), sorted(masks.colours.items()), sorted(masks.ignored)),
        masks.palette.tobytes().hex(),
    ]
    start = blake2b(json.dumps(settings).encode(), digest_size=16)
    folder, latest = Path.cwd(), time.time_ns() - int(SETTLED * 1e9)

    def key(sample: Sample) -> bytes | None:
        digest = start.copy()
        for path in (sample.image, sample.mask):
            try:
                status = os.stat(path)
            except (OSError, ValueError):
                return None
            if status.st_mtime_ns > latest:
                return None
            digest.update(os.fsencode(os.path.join(folder, path)))
            digest.update(b"\0%d %d\0" % (status.st_size, status.st_mtime_ns))
        return digest.digest()

    return [key(sample) for sample in samples]


def _load(keys: Sequence[bytes]) -> dict[bytes, CheckedSample]:
    """What was found in earlier runs."""
    entries: dict[bytes, CheckedSample] = {}

    def load(database: sqlite3.Connection) -> None:
        for first in range(0, len(keys), KEYS_AT_ONCE):
            part = keys[first : first + KEYS_AT_ONCE]
            query = f"SELECT key, found FROM checks WHERE key IN ({','.join('?' * len(part))})"
            for key, text in database.execute(query, part):
                found = _decoded(text)
                if found is not None:
                    entries[key] = found

    if _path().is_file():
        _with_database(load)
    return entries


def _store(outcomes: dict[bytes, CheckedSample | VocsegError]) -> None:
    found = [(key, _encoded(outcome)) for key, outcome in outcomes.items() if isinstance(outcome, CheckedSample)]
    entries = [(key, text) for key, text in found if len(text) <= LARGEST]

    def store(database: sqlite3.Connection) -> None:
        with database:  # one transaction
            database.execute("CREATE TABLE IF NOT EXISTS checks (id INTEGER PRIMARY KEY, key BLOB UNIQUE, found TEXT)")
            database.executemany("INSERT OR REPLACE INTO checks (key, found) VALUES (?, ?)", entries)
            database.execute("DELETE FROM checks WHERE id <= (SELECT max(id) FROM checks) - ?", (ENTRIES,))

    if entries:
        with suppress(OSError):
            _path().parent.mkdir(parents=True, exist_ok=True)
            _with_database(store)


def _with_database(work: Callable[[sqlite3.Connection], None]) -> None:
    """Opens the database for a function, which may end early: what it did not do is as if there were no cache."""
    path = _path()
    try:
        with closing(sqlite3.connect(path, timeout=TIMEOUT)) as database:
            work(database)
    except sqlite3.OperationalError:  # locked, not writable, no space
        return
    except sqlite3.DatabaseError:  # damaged, or no database: the next one to write begins a new one
        with suppress(OSError):
            path.unlink()


def _path() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(folder) / "vocseg" / "checks-1.sqlite"


def _encoded(found: CheckedSample) -> str:
    return json.dumps([found.size, found.labels, found.pixels, found.read_by, found.values], separators=(",", ":"))


def _decoded(text: str) -> CheckedSample | None:
    """The entry; None if it is damaged."""
    try:
        (height, width), labels, pixels, read_by, values = json.loads(text)
        if sum(pixels) != height * width or len(labels) != len(pixels) or not set(labels) <= set(range(256)):
            return None
        values = [tuple(value) if isinstance(value, list) else value for value in values]
        return CheckedSample((height, width), tuple(labels), tuple(pixels), read_by, tuple(values))
    except (TypeError, ValueError):
        return None
