"""The table of a network's parts and parameters at the start of a fit."""

import lightning as L
from lightning.pytorch.callbacks import ModelSummary
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn.parameter import is_lazy


class PartsSummary(ModelSummary):
    """Prints each part of a network (backbone, decoder, auxiliary head) with its trainable and frozen parameters.

    Of a user's own task: its submodules. Lightning adds no summary of its own beside a subclass of ModelSummary.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the table."""
        if trainer.is_global_zero:
            Console().print(parts_table(pl_module))


def parts_table(task: nn.Module) -> Table:
    """The parts with parameters, as a table for the terminal."""
    network = getattr(task, "network", None)
    inner = dict(network.named_children()) if isinstance(network, nn.Module) else {}
    outer = {name: module for name, module in task.named_children() if module is not network or not inner}
    table = Table("", "class", box=box.SIMPLE, title="Parameters", title_justify="left")
    for column in ("trainable", "frozen"):
        table.add_column(column, justify="right")
    for name, module in {**inner, **outer}.items():
        trainable, frozen = parameters_of(module)
        if trainable or frozen:
            table.add_row(name, type(module).__name__, f"{trainable:,}", f"{frozen:,}")
    table.add_section()
    table.add_row("total", "", *(f"{number:,}" for number in parameters_of(task)))
    return table


def parameters_of(module: nn.Module) -> tuple[int, int]:
    """How many parameters are trainable, and how many frozen; those that are not yet initialized do not count."""
    counts = {True: 0, False: 0}
    for parameter in module.parameters():
        counts[parameter.requires_grad] += 0 if is_lazy(parameter) else parameter.numel()
    return counts[True], counts[False]
