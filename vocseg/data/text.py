"""Text files from other tools, in the encodings that these write."""

import codecs
import re
from pathlib import Path

from vocseg.errors import VocsegError


def read_text(path: Path) -> str:
    r"""Reads a text file: UTF-16 if it begins with a byte order mark, else each line is UTF-8 or Windows-1252.

    Returns:
        The text without a byte order mark, with ``\n`` at the ends of lines.

    Raises:
        VocsegError: the file cannot be read or decoded; the message names the line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise VocsegError(f"{path} cannot be read: {error.strerror}.") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # what cannot be decoded becomes a zero character, which no text has
        lines = re.split(r"\r\n?|\n", data.decode("utf-16", "replace").replace("\ufffd", "\0"))
    else:
        lines = [_decode(line) for line in re.split(rb"\r\n?|\n", data.removeprefix(codecs.BOM_UTF8))]
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise VocsegError(f"{path}, line {number}, cannot be decoded as text. Save the file as UTF-8.")
    return "\n".join(lines)


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Reads the lines of a text file that are not empty, without spaces at their ends, each with its number from 1.

    Raises:
        VocsegError: as ``read_text``.
    """
    lines = read_text(path).split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _decode(line: bytes) -> str:
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            continue
    return "\0"
