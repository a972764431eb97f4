"""Griffe extension: ``:class:`Name` `` and its relatives in docstrings become links to the named object."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


class SphinxRoles(griffe.Extension):
    """Rewrites the roles before the pages are built. A name that no page documents fails a strict build."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda match: _link(obj, *match.groups()), obj.docstring.value)


def _link(scope: griffe.Object, role: str, name: str) -> str:
    if name.startswith("vocseg."):
        return f"[`{name if role == 'mod' else name.rpartition('.')[2]}`][{name}]"
    first, dot, rest = name.partition(".")
    try:
        return f"[`{name}`][{scope.resolve(first)}{dot}{rest}]"
    except griffe.NameResolutionError:
        return f"[`{name}`][{name}]"  # mkdocs reports it
