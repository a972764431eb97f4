"""Components as configuration: ``{"class_path": ..., "init_args": {...}}``, and components from such a configuration.

Checkpoints and YAML files hold these plain dictionaries and never a pickled object, so a checkpoint loads with torch's
safe loading (``weights_only=True``).
"""

import contextlib
import importlib
import inspect
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import lightning as L
from torch import nn

import vocseg
from vocseg.errors import VocsegError, nearest

Config = dict[str, Any]
"""``{"class_path": str, "init_args": dict}``, or ``{"unrecorded": str}`` for a component that could not be saved."""


class SavesInitArgs:
    """Mixin that saves the arguments of the constructor, whoever calls it.

    ``__new__`` receives them before any ``__init__`` runs. Lightning's ``save_hyperparameters`` does not serve here: in
    a component that a task constructs inside its own constructor it saves the task's arguments.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102
        self = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        bound = signature.bind_partial(self, *args, **kwargs)
        bound.apply_defaults()
        arguments: dict[str, Any] = {}
        self.__dict__["_init_args"] = arguments
        for name, value in list(bound.arguments.items())[1:]:
            kind = signature.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                self.__dict__["_has_unnamed_args"] = bool(value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                arguments.update(value)
            else:
                arguments[name] = value
        return self


class NetworkPart(SavesInitArgs, L.LightningModule):
    """Base class of backbones, decoders and tasks: a LightningModule that is an ordinary module without a trainer.

    Lightning raises RuntimeError where a module without a trainer is asked for it. ``hasattr`` does not expect that,
    and ``torch.jit.trace`` calls it for every attribute.
    """

    @property
    def trainer(self) -> L.Trainer:
        """The trainer of the task.

        Raises:
            AttributeError: there is none.
        """
        try:
            return super().trainer
        except RuntimeError as error:
            raise AttributeError(str(error)) from error

    @trainer.setter
    def trainer(self, trainer: L.Trainer | None) -> None:
        L.LightningModule.trainer.fset(self, trainer)  # type: ignore[attr-defined]  # mypy does not know property.fset


def to_config(component: Any, *, skip: int = 0) -> Config | None:
    """Describes a component as ``{"class_path", "init_args"}``.

    Args:
        component: an object of a class with :class:`SavesInitArgs`, an ``nn.Module`` whose constructor takes no
            arguments, a class, a ``functools.partial`` of a class, a mapping that is such a configuration already, or
            None.
        skip: leave out this many leading arguments (those that the caller of the component passes again).

    Returns:
        The configuration, or None for None. For a component whose arguments are unknown only
        ``{"unrecorded": <class path>}``.
    """
    if component is None:
        return None
    if isinstance(component, Mapping):
        return dict(component)
    init_args: Mapping[str, Any] | None
    if isinstance(component, partial):
        made_by: Any = component.func
        init_args = component.keywords if isinstance(made_by, type) and not component.args else None
    elif isinstance(component, type):
        made_by, init_args = component, {}
    else:
        made_by, saved = type(component), getattr(component, "__dict__", {})
        init_args = None if saved.get("_has_unnamed_args") else saved.get("_init_args")
        takes_no_arguments = len(inspect.signature(made_by.__init__).parameters) == 1
        if init_args is None and isinstance(component, nn.Module) and takes_no_arguments:
            init_args = {}
    class_path = class_path_of(made_by)
    if init_args is None or made_by.__module__ == "__main__" or "<" in class_path:
        return {"unrecorded": class_path}
    leading = list(inspect.signature(made_by.__init__).parameters)[1 : 1 + skip]
    try:
        settings = {name: plain(value) for name, value in init_args.items() if name not in leading}
    except TypeError:
        return {"unrecorded": class_path}
    return {"class_path": class_path, "init_args": settings}


def class_path_of(made_by: Any) -> str:
    """The import path of a class; the public one where vocseg exports it, which stays valid when the class moves."""
    class_path = f"{made_by.__module__}.{getattr(made_by, '__qualname__', made_by)}"
    name = class_path.rpartition(".")[2]
    exported = class_path.startswith("vocseg.") and getattr(vocseg, name, None) is made_by
    return f"vocseg.{name}" if exported else class_path


def from_config(component: Any, role: str, base: type) -> Any:
    """Builds a component from its configuration; anything that is not a mapping is returned unchanged.

    Args:
        component: ``{"class_path", "init_args"}``, or a finished component, or None.
        role: the argument that it is for (``backbone``), named in error messages.
        base: the class that it must derive from.

    Raises:
        VocsegError: as :func:`factory_from_config`.
    """
    return factory_from_config(component, role, base)() if isinstance(component, Mapping) else component


def factory_from_config(component: Any, role: str, base: type | tuple[type, ...]) -> Any:
    """Makes a factory from a configuration; anything that is not a mapping is returned unchanged.

    Args:
        component: ``{"class_path", "init_args"}``, or a finished factory, or None.
        role: the argument that it is for (``decoder``), named in error messages.
        base: the class that it must derive from. Nothing else that a file names is ever called.

    Returns:
        A ``functools.partial`` of the class with its ``init_args``.

    Raises:
        VocsegError: the component was not recorded, cannot be imported, or does not derive from ``base``.
    """
    if not isinstance(component, Mapping):
        return component
    if "class_path" not in component:
        raise VocsegError(
            f"The checkpoint does not say how to build its {role} ({component.get('unrecorded', 'unnamed')}): its "
            f"constructor's arguments could not be recorded. Pass it yourself: load_from_checkpoint(path, {role}=...)."
        )
    found = _import_class(str(component["class_path"]), role)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise VocsegError(f"{role}: {component['class_path']} is no class that can serve as {role}: not built.")
    init_args = component.get("init_args") or {}
    return partial(found, **{name: _build_nested(value, role, base) for name, value in init_args.items()})


def _import_class(class_path: str, role: str) -> Any:
    module_name, _, class_name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module_name), class_name)
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


def _build_nested(value: Any, role: str, base: type | tuple[type, ...]) -> Any:
    if isinstance(value, Mapping) and "class_path" in value:
        return factory_from_config(value, role, base)()
    if isinstance(value, list):
        return [_build_nested(item, role, base) for item in value]
    return value


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of some settings that YAML and safe loading know, as :func:`plain` converts them; without other objects."""
    known = {}
    for name, value in settings.items():
        with contextlib.suppress(TypeError):
            known[name] = plain(value)
    return known


def plain(value: Any) -> Any:
    """``value`` in the types that YAML and safe loading know; raises TypeError where that is impossible."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    config = to_config(value)
    if config is None or "unrecorded" in config:
        raise TypeError(f"{value!r} cannot be described by plain values")
    return config
