"""Parameter groups, and what a resumed run may change of its optimizer."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

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
            "resumed run the same parts must be frozen."
        )


def apply_changed_settings(
    optimizer: Optimizer,
    scheduler: LRScheduler | ReduceLROnPlateau | None,
    saved: Sequence[Settings] | None,
    configured: Sequence[Settings],
) -> None:
    """Gives a restored optimizer the settings that were configured now, where they differ from those at saving.

    A changed learning rate keeps its position in the schedule.

    Args:
        optimizer: restored from a checkpoint.
        scheduler: of its learning rates, restored as well.
        saved: the settings that the saved run was configured with; None: read from the optimizer's state.
        configured: the settings of the present configuration.
    """
    for index, (group, now) in enumerate(zip(optimizer.param_groups, configured, strict=True)):
        before = saved[index] if saved else {**group, "lr": group.get("initial_lr", group["lr"])}
        changed = {name: value for name, value in now.items() if name in before and before[name] != value}
        if "lr" in changed:
            group["initial_lr"] = now["lr"]
            changed["lr"] = group["lr"] * now["lr"] / before["lr"] if before["lr"] else now["lr"]
        group.update(changed)
    if isinstance(scheduler, LRScheduler):
        scheduler.load_state_dict({**scheduler.state_dict(), "base_lrs": [now["lr"] for now in configured]})
    if isinstance(scheduler, FactorLR):  # the schedule itself may have changed, too
        for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = rate
