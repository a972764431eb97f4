"""Short explanations of jsonargparse's error messages, with suggestions for misspelt words."""

import importlib
import inspect
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer

from vocseg.backbones import Backbone
from vocseg.decoders import Decoder
from vocseg.errors import nearest

_BASES = {
    "model.backbone": Backbone,
    "model.decoder": Decoder,
    "model.loss": nn.Module,
    "model.optimizer": Optimizer,
    "trainer.callbacks": Callback,
}


def explain(message: str, configs: Sequence[str], parser: LightningArgumentParser) -> str:
    """Explains a parsing error in one to six lines.

    Args:
        message: the error message of jsonargparse.
        configs: paths of the config files that were parsed; the one that contains the wrong word is named.
        parser: the parser of the subcommand, for the names of its options.

    Returns:
        What is wrong, where, and the most similar valid word. An unknown kind of message is cut after six lines.
    """
    key = _found(r'Parser key "([\w.]+)"', message)
    word = None
    if message.startswith("unrecognized arguments") or "does not accept option" in message:
        word = _found(r"unrecognized arguments: -*([^\s=]+)", message) or _found(r"option '([^']+)'", message)
    if word:
        if Path(word).exists() or word.startswith("/"):
            return f"Unexpected argument {word!r}. A glob pattern needs quotes, or the shell expands it: '*.jpg'"
        option = word.removesuffix(".class_path").split(".init_args")[0]
        return f"There is no option {option!r}{_where(option, configs)}.{nearest(option, _options(parser))}"
    required = _found(r"arguments are required: ([\w., ]+)", message)
    if required:
        options = ", ".join(f"--{name.strip().partition('.')[2]}" for name in required.split(","))
        return (
            f"Missing options: {options}. A config contains them, for example --config quickstart "
            "(`vocseg experiments` lists all)."
        )
    unknown_class = _found(r"[Ee]xpected a dot import path string: (\S+)", message)
    if unknown_class:
        names = _class_names(key)
        known = f" Known: {', '.join(names)}." if 0 < len(names) <= 12 else ""
        return (
            f"{key}: there is no class {unknown_class!r}{_where(unknown_class, configs)}."
            f"{nearest(unknown_class, names)}{known} A class of your own needs its module: my_module.MyClass."
        )
    setting, class_path = (
        _found(r"Option '([^']+)' is not accepted", message),
        _found(r"class_path[ =]'([^']+)'", message),
    )
    if setting and class_path:
        names = _settings(class_path)
        return (
            f"{key}: {class_path} has no setting {setting!r}{_where(setting, configs)}."
            f"{nearest(setting, names)} Its settings: {', '.join(names)}."
        )
    expected = re.findall(r'Parser key "([\w.]+)":\s*\n\s*(Expected [^\n]+)', message)
    if expected:
        inner, what = expected[0]
        full = inner if key is None or inner == key else f"{key}.{inner}"
        return f"{full}: {_plain(what)}{_where(inner.rpartition('.')[2], configs)}"
    imported = _found(
        r"(No module named '[^']+'|[Nn]o attribute '[^']+'|module '[^']+' has no attribute '[^']+')", message
    )
    if imported:
        return f"{key}: {imported}{_where(imported.split(chr(39))[-2], configs)}."
    if "Problems parsing config" in message or "while parsing" in message:
        broken = ", ".join(configs)
        return f"A config is not valid YAML ({broken}): {' '.join(message.split())}"
    return "\n".join([line for line in message.splitlines() if line.strip()][:6])


def _found(pattern: str, text: str) -> str | None:
    """The first group of the first match, or None."""
    match = re.search(pattern, text)
    return match.group(1) if match else None


def _where(word: str, configs: Sequence[str]) -> str:
    """`` (in my.yaml)`` for the first config that contains the part of ``word`` after its last dot."""
    last = word.rpartition(".")[2]
    for path in configs:
        if Path(path).is_file() and last in Path(path).read_text(encoding="utf-8", errors="replace"):
            return f" (in {path})"
    return ""


def _options(parser: LightningArgumentParser) -> list[str]:
    """Names of all options, ``data.batch_size``, and of the groups of two parts above them, ``model.optimizer``."""
    leaves = {str(key) for key, _ in parser.get_defaults().items()}
    return sorted(leaves | {".".join(leaf.split(".")[:2]) for leaf in leaves} | {"model.backbone", "model.decoder"})


def _class_names(key: str | None) -> list[str]:
    """Names of the known classes for an option: all imported subclasses of its base class."""
    base = next((base for prefix, base in _BASES.items() if key and key.startswith(prefix)), None)
    return sorted({cls.__name__ for cls in _subclasses(base)}) if base else []


def _subclasses(base: type) -> Iterable[type]:
    subclass: type
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)


def _settings(class_path: str) -> list[str]:
    """The parameters of a constructor that a user can set; the task passes the others."""
    module, _, name = class_path.rpartition(".")
    return [
        parameter
        for parameter in inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters
        if parameter not in ("self", "args", "kwargs", "channels", "strides", "num_classes")
    ]


def _plain(expected: str) -> str:
    """Turns ``Expected a <class 'int'>. Got value: x`` into ``expected int, got x``."""
    expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace("typing.", "")
    expected = re.sub(r"Literal\[(.*?)\]", r"one of \1", expected)
    return expected.replace("Expected a ", "expected ").replace(". Got value: ", ", got ").rstrip(".")
