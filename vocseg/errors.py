"""The exception for invalid input, and suggestions for misspelt names."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn


class VocsegError(ValueError):
    """The input (a setting, a file, an argument) is invalid; the message says what is wrong, where, and how to fix it.

    The command line prints only the message, without a traceback, and exits with status 1.
    """


def nearest(word: str, choices: Iterable[str]) -> str:
    """Suggests a correction of a misspelt word.

    Args:
        word: the word as given.
        choices: the valid words; case is ignored in the comparison.

    Returns:
        `` Did you mean 'x'?``, with a leading space, for the most similar choice; an empty string if none is similar.
    """
    lowered = {choice.lower(): choice for choice in choices}
    matches = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f" Did you mean {lowered[matches[0]]!r}?" if matches else ""


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Checks a setting that has few values; in Python nobody else does.

    Raises:
        VocsegError: it is none of them, with the most similar one.
    """
    choices = list(choices)
    if value not in choices:
        known = ", ".join(map(str, choices))
        raise VocsegError(f"{name} must be one of {known}; got {value!r}.{nearest(str(value), map(str, choices))}")


class ArgumentParser(argparse.ArgumentParser):
    """An ``argparse`` parser that raises :class:`VocsegError` for a mistake, instead of printing its usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Reports a mistake on the command line."""
        raise VocsegError(f"{message} (see {self.prog} --help)")
