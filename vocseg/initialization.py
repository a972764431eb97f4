"""``--init_from``: a new training starts from the weights of another one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from vocseg.checkpoints import best_beside
from vocseg.components import factory_from_config, to_config
from vocseg.errors import VocsegError
from vocseg.network import SegmentationNetwork
from vocseg.run_folder import RunFolder
from vocseg.state_dicts import network_state, read_weights

SHOWN = 4
"""At most so many names are listed in a message."""


@dataclass
class Start:
    """Which of a network's tensors came from a source, and which did not.

    Attributes:
        taken: keys of the tensors that were taken whole.
        kept_classes: names of the classes whose rows of the last layer were taken; None where no rows were chosen.
        afresh: keys of the tensors, or of rows of tensors, that keep their own values.
    """

    taken: list[str] = field(default_factory=list)
    kept_classes: list[str] | None = None
    afresh: list[str] = field(default_factory=list)


def start_from(network: SegmentationNetwork, class_names: Sequence[str], source: str | Path) -> Start:
    """Takes the weights of another training that fit a network, and reports the others.

    A tensor fits if it has the same key and shape. Of tensors with one row per class, the rows are taken whose class
    name both trainings have. If the backbone is not taken as a whole, its pretrained weights are loaded before.

    Args:
        network: the network that will be trained.
        class_names: its classes.
        source: a run folder (its best checkpoint), the name of a run in ``lightning_logs``, a checkpoint, or a state
            dict of a whole network or of a backbone.

    Raises:
        VocsegError: the source does not exist, does not load safely, or holds no tensor that fits.
    """
    path = checkpoint_of(source)
    content = read_weights(path)
    saved = network_state(content)
    if not any(key.startswith(("backbone.", "decoder.")) for key in saved):
        translate = getattr(network.backbone, "translate", dict)
        saved = {f"backbone.{key}": value for key, value in translate(saved).items()}
    names = (content.get(L.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY) or {}).get("class_names")
    start = Start()
    own = network.state_dict()
    rows = {} if names is None or list(names) == list(class_names) else _class_dimensions(network, len(class_names))
    shared = [name for name in class_names if name in (names or ())]
    here, there = [list(class_names).index(name) for name in shared], [list(names or ()).index(name) for name in shared]
    new: dict[str, Tensor] = {}
    for key, value in own.items():
        other = saved.get(key)
        if key in rows:
            dimension, expected = rows[key], list(value.shape)
            expected[dimension] = len(names or ())
            if other is not None and list(other.shape) == expected and shared:
                new[key] = value.clone()
                index = torch.tensor(here, device=value.device)
                chosen = other.index_select(dimension, torch.tensor(there)).to(value)
                new[key].index_copy_(dimension, index, chosen)
                start.kept_classes = shared
                continue
        elif other is not None and other.shape == value.shape:
            new[key] = other
            start.taken.append(key)
            continue
        if not key.endswith("num_batches_tracked"):
            start.afresh.append(key)
    if not start.taken:
        raise VocsegError(
            f"Nothing in {path} fits this network: it has {_some(list(saved)) or 'no tensors'}, and the network "
            f"{_some(list(own))}."
        )
    if any(key.startswith("backbone.") for key in start.afresh):
        load_pretrained = getattr(network.backbone, "load_pretrained", None)
        if load_pretrained is not None:
            load_pretrained()
    network.load_state_dict({**network.state_dict(), **new})
    rank_zero_info("\n".join([f"Weights from {path}: {len(start.taken)} of {len(own)} tensors taken.", *_told(start)]))
    return start


def _told(start: Start) -> list[str]:
    lines = []
    if start.kept_classes is not None:
        lines.append(f"  Rows of the last layer taken by class name: {', '.join(start.kept_classes)}")
    for part in ("backbone", "decoder"):
        keys = [key for key in start.afresh if key.startswith(f"{part}.")]
        if keys:
            lines.append(f"  Not taken from it, {part}: {len(keys)} tensors ({_some(keys)})")
    return lines


def checkpoint_of(source: str | Path) -> Path:
    """The file that a run's name or folder stands for, its best checkpoint or else its last; a file stands for itself.

    Raises:
        VocsegError: there is no such file or run, or the run has no checkpoint.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".ckpt", ".pth", ".pt", ".safetensors"):
        raise VocsegError(f"There is no file {path}.")
    run = RunFolder.find(str(path))
    if run.best.is_file():
        return run.best
    if run.last.is_file():
        return best_beside(run.last) or run.last
    raise VocsegError(f"The run {run.path} has no checkpoint in {run.checkpoints}.")


def _class_dimensions(network: SegmentationNetwork, num_classes: int) -> dict[str, int]:
    """The decoder's tensors with one entry per class, by key, and the dimension of these entries.

    They are those whose shape changes with the number of classes.
    """
    backbone: Any = network.backbone
    config = to_config(network.decoder, skip=3)
    own = network.decoder.state_dict()
    if config is None or "unrecorded" in config:  # cannot be built again: the last layer is taken to be last
        last = list(own)[-2:]
        found = {key: list(own[key].shape).index(num_classes) for key in last if num_classes in own[key].shape}
    else:
        with torch.device("meta"):
            build = factory_from_config(config, "decoder", nn.Module)
            other: Mapping[str, Tensor] = build(
                list(backbone.channels), list(backbone.strides), num_classes + 1
            ).state_dict()
        found = {
            key: next(index for index, size in enumerate(value.shape) if size != own[key].shape[index])
            for key, value in other.items()
            if value.shape != own[key].shape
        }
    return {f"decoder.{key}": dimension for key, dimension in found.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
