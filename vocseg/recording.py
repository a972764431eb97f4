"""How a component is written into a checkpoint and made again: ``{"class_path": ..., "init_args": {...}}``.

A checkpoint holds these plain dictionaries and never a pickled object, so it loads with torch's safe loading.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import nn

import vocseg
from vocseg.errors import VocsegError, nearest


class Recorded:
    """Remembers the arguments that an object was constructed with, whoever constructs it.

    ``__new__`` sees them before any ``__init__`` runs. (Lightning's ``save_hyperparameters`` is no use here: inside a
    component that a task builds in its own constructor it records the task's arguments.)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = {}
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL and value:
                return self  # arguments without names cannot be written down
            if kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            elif kind is not inspect.Parameter.VAR_POSITIONAL:
                arguments[name] = value
        self.__dict__["_recorded"] = arguments
        return self


def describe(component: Any, *, skip: int = 0) -> dict[str, Any] | None:
    """Writes a component down as ``{"class_path", "init_args"}``.

    Args:
        component: a ``Recorded`` object, an ``nn.Module`` whose constructor takes no arguments, a class, a
            ``functools.partial`` of a class, a dictionary that is such a description already, or None.
        skip: leave out this many leading arguments (those the caller of the component will give again).

    Returns:
        The description. Of a component that cannot be recorded only ``{"unrecorded": <its name>}``.
    """
    if component is None or isinstance(component, Mapping):
        return component
    if isinstance(component, partial):
        made_by, arguments = component.func, dict(component.keywords)
        recordable = isinstance(made_by, type) and not component.args
    elif isinstance(component, type):
        made_by, arguments, recordable = component, {}, True
    else:
        made_by, arguments = type(component), getattr(component, "__dict__", {}).get("_recorded")
        recordable = arguments is not None
        if not recordable and isinstance(component, nn.Module):
            arguments, recordable = {}, len(inspect.signature(made_by.__init__).parameters) == 1
    name = f"{made_by.__module__}.{getattr(made_by, '__qualname__', made_by)}"
    if name.startswith("vocseg.") and getattr(vocseg, made_by.__name__, None) is made_by:
        name = f"vocseg.{made_by.__name__}"  # the public name outlives a move inside the package
    if not recordable or made_by.__module__ == "__main__" or "<" in name:
        return {"unrecorded": name}
    leading = list(inspect.signature(made_by.__init__).parameters)[1 : 1 + skip]
    try:
        init_args = {key: _plain(value) for key, value in arguments.items() if key not in leading}
    except TypeError:
        return {"unrecorded": name}
    return {"class_path": name, "init_args": init_args}


def _plain(value: Any) -> Any:
    """``value`` made of what YAML and safe loading know; TypeError where that cannot be."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    description = describe(value)
    if "unrecorded" in description:
        raise TypeError(f"{value!r} cannot be recorded")
    return description


def build(description: Mapping[str, Any], role: str, base: type | tuple[type, ...]) -> Callable[..., Any]:
    """Makes a factory of what :func:`describe` wrote down.

    Args:
        description: ``{"class_path", "init_args"}``.
        role: the name of the argument it is for, used in messages and told to be passed instead.
        base: the class it must derive from; nothing else named in a file is ever called.

    Returns:
        A ``functools.partial`` of the class with its ``init_args``.

    Raises:
        VocsegError: it was not recorded, cannot be imported, or is no ``base``.
    """
    if "class_path" not in description:
        raise VocsegError(
            f"The checkpoint does not say how to build its {role} ({description.get('unrecorded', 'unnamed')}): its "
            f"constructor's arguments could not be recorded. Pass it yourself: load_from_checkpoint(path, {role}=...)."
        )
    class_path, init_args = description["class_path"], dict(description.get("init_args") or {})
    module_name, _, class_name = class_path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, ValueError) as error:
        raise VocsegError(
            f"{role}: {class_path} cannot be imported here ({error}). Put its module on PYTHONPATH, or pass the "
            f"{role} itself: load_from_checkpoint(path, {role}=...)."
        ) from error
    except AttributeError as error:
        classes = [name for name, value in vars(sys.modules[module_name]).items() if isinstance(value, type)]
        raise VocsegError(
            f"{role}: {module_name} has no class {class_name!r}.{nearest(class_name, classes)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise VocsegError(f"{role}: {class_path} is no class that can serve as {role}: not built.")
    return partial(found, **{key: _rebuilt(value, role, base) for key, value in init_args.items()})


def made(component: Any, role: str, base: type, *, factory: bool = False) -> Any:
    """``component`` as it is, or built if it is a description; ``factory``: its factory, for others to call."""
    if not isinstance(component, Mapping):
        return component
    build_it = build(component, role, base)
    return build_it if factory else build_it()


def _rebuilt(value: Any, role: str, base: type | tuple[type, ...]) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return build(value, role, base)()
    if isinstance(value, list):
        return [_rebuilt(item, role, base) for item in value]
    return value
