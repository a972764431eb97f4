"""Parameter groups, and what a resumed run may change of its optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vocseg.errors import VocsegError
from vocseg.schedules import FactorLR

Settings = dict[str, Any]
"""Name and options (``lr``, ``weight_decay``, ...) of a parameter group, without its parameters."""


def parameter_groups(parts: Mapping[str, nn.Module], learning_rates: Mapping[str, float | None]) -> list[dict]:
    """One group for each part that has something to train.

    Args:
        parts: modules by name.
        learning_rates: of a part, where it differs from the optimizer's.

    Raises:
        VocsegError: no parameter requires gradients.
    """
    groups: list[dict] = []
    for name, module in parts.items():
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if parameters:
            rate = learning_rates.get(name)
            groups.append({"params": parameters, "name": name, **({} if rate is None else {"lr": rate})})
    if not groups:
        raise VocsegError("Nothing is left to train: backbone and decoder are both frozen.")
    return groups


def split_layers(group: Mapping[str, Any], layers: Sequence[Sequence[nn.Parameter]], decay: float) -> list[dict]:
    """One group for each layer, with learning rates that fall from the deepest layer to the first.

    The rate of layer l of L is the group's times ``decay ** (L - 1 - l)``, and ``lr_scale`` is that factor (Clark et
    al. 2020, "ELECTRA", appendix; Bao et al. 2022, "BEiT", appendix).

    Args:
        group: a parameter group with its ``lr``.
        layers: see :func:`layers_of`. Parameters of the group that are in none, as embeddings of positions, count to
            the first.
        decay: above 0, at most 1.
    """
    layer = {id(parameter): number for number, parameters in enumerate(layers) for parameter in parameters}
    groups = []
    for number in range(len(layers)):
        parameters = [parameter for parameter in group["params"] if layer.get(id(parameter), 0) == number]
        if parameters:
            scale = decay ** (len(layers) - 1 - number)
            own = {"params": parameters, "name": f"{group['name']}/{number}", "lr": group["lr"] * scale}
            groups.append({**group, **own, "lr_scale": scale})
    return groups


def layers_of(network: nn.Module) -> list[list[nn.Parameter]]:
    """The parameters of a network's layers, first to last.

    A layer is a child module, or each item of one that is a ``Sequential`` or a ``ModuleList``; a network with a single
    child is looked at inside. Norms belong to the layer before them. In torchvision's ResNet a layer is so a residual
    block, in a vision transformer a block, and in timm's ConvNeXt a stage.
    """
    children = [child for child in network.children() if any(True for _ in child.parameters())]
    if len(children) == 1:
        return layers_of(children[0])
    layers: list[list[nn.Parameter]] = []
    for child in children or [network]:
        for part in child if isinstance(child, nn.Sequential | nn.ModuleList) else [child]:
            parameters = list(part.parameters())
            if layers and all(parameter.ndim <= 1 for parameter in parameters):
                layers[-1] += parameters
            elif parameters:
                layers.append(parameters)
    return layers


def split_norms(group: Mapping[str, Any], weight_decay: float) -> list[dict]:
    """Splits the group's norms and biases, parameters of at most one dimension, off into one of their own.

    Args:
        group: a parameter group.
        weight_decay: of the norms and biases.
    """
    weights = [parameter for parameter in group["params"] if parameter.ndim > 1]
    norms = [parameter for parameter in group["params"] if parameter.ndim <= 1]
    own = {"params": norms, "name": f"{group['name']}/norms", "weight_decay": weight_decay}
    return [{**group, **settings} for settings in ({"params": weights}, own) if settings["params"]]


def group_settings(optimizer: Optimizer) -> list[Settings]:
    """The settings of each group, without its parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def check_resumable(
    saved_class: str, saved_groups: Sequence[Mapping[str, Any]], now_class: str, now: Optimizer
) -> None:
    """Checks that an optimizer's saved state fits the configured optimizer.

    Args:
        saved_class: class path of the saved optimizer.
        saved_groups: the parameter groups of its state dict.
        now_class: class path of the configured one.
        now: the configured optimizer.

    Raises:
        VocsegError: another class, or other trainable parameters.
    """
    if saved_class.rpartition(".")[2] != now_class.rpartition(".")[2]:
        raise VocsegError(
            f"The checkpoint was trained with {saved_class}, but the configured optimizer is {now_class}: a resumed "
            "run must keep its optimizer."
        )
    before, after = (
        ", ".join(f"{group.get('name')} {len(group['params'])}" for group in groups)
        for groups in (saved_groups, now.param_groups)
    )
    named = saved_groups and all("name" in group for group in saved_groups)  # else a subclass made other groups
    if named and before != after:
        raise VocsegError(
            f"The checkpoint was training other parameters ({before}) than the configuration trains ({after}): in a "
            "resumed run the same parts must be frozen, and norm_weight_decay and layer_decay be set or not, as before."
        )


def check_schedule_resumable(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a scheduler's saved state fits the configured scheduler.

    Args:
        saved: :func:`vocseg.schedules.schedule_settings` of the saved run.
        now: the same of the configured one.

    Raises:
        VocsegError: another class or interval, whose position in the run is counted in another way.
    """
    before, after = (
        f"{'Schedule' if settings['class'] == FactorLR.__name__ else settings['class']} with the interval "
        f"{settings['interval']}"
        for settings in (saved, now)
    )
    if before != after:
        raise VocsegError(
            f"The checkpoint's schedule is {before}, but the configured one is {after}: a resumed run must keep class "
            "and interval of its schedule."
        )


def apply_changed_settings(
    optimizer: Optimizer, scheduler: LRScheduler | None, saved: Mapping[str, Any], configured: Mapping[str, Any]
) -> None:
    """Gives a restored optimizer the settings that were configured now, where they differ from those at saving.

    A changed learning rate keeps its position in the schedule.

    Args:
        optimizer: restored from a checkpoint.
        scheduler: of its learning rates, restored as well.
        saved: the settings of the saved run before its first step: ``optimizer_settings`` (of each group) and
            ``schedule_settings``. What is missing, as in checkpoints of vocseg 0.1.0, is read from the optimizer.
        configured: the same of the present configuration.
    """
    groups = zip(optimizer.param_groups, configured["optimizer_settings"], strict=True)
    for index, (group, now) in enumerate(groups):
        before = saved["optimizer_settings"][index] if saved.get("optimizer_settings") else dict(group)
        base_before, base_now = (settings.get("initial_lr", settings["lr"]) for settings in (before, now))
        if base_before != base_now:
            group["lr"] = group["lr"] * base_now / base_before if base_before else base_now
            if "initial_lr" in group:
                group["initial_lr"] = base_now
        group.update({name: now[name] for name in now if name != "lr" and name in before and before[name] != now[name]})
    if scheduler is None:
        return
    state = configured["schedule_settings"]["state"]
    if saved.get("schedule_settings"):
        state_before = saved["schedule_settings"]["state"]
        names = [name for name in state if name in state_before and state_before[name] != state[name]]
    else:
        names = ["base_lrs"] if "base_lrs" in state else []
    changed = {name: state[name] for name in names if name != "_last_lr"}  # which says where a run is
    if changed:
        scheduler.load_state_dict({**scheduler.state_dict(), **changed})
    if isinstance(scheduler, FactorLR):  # the schedule itself may have changed, too
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
