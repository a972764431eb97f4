"""Mistakes in what vocseg was given, told so that they can be mended."""

import difflib
from collections.abc import Iterable


class VocsegError(ValueError):
    """Something vocseg was given is wrong; the message says what, where, and how to mend it.

    The command line prints the message alone, without a traceback, and exits with status 1.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the choice most like ``word``, or an empty string when none is like it."""
    choices = list(choices)
    lowered = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean {lowered[matches[0]]!r}?" if matches else ""
