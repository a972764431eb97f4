import io
import json
import math
from types import SimpleNamespace

import torch
from rich.console import Console

from vocseg.callbacks import ResultTable
from vocseg.callbacks.results import result_record, result_table
from vocseg.metrics import Evaluation


def result(of_a=1):
    """One image: 6 background pixels, of which one is taken for a; 2 of a, taken for ``of_a``; 1 void. b is nowhere."""
    evaluation = Evaluation(3)
    target = torch.tensor([[0, 0, 0], [0, 0, 0], [1, 1, 255]])
    prediction = torch.tensor([[0, 0, 0], [0, 0, 1], [of_a, of_a, 1]])
    evaluation.update_image(prediction, target, 0)
    return evaluation.compute()


def test_the_table_stands_beside_the_all_background_row():
    file = io.StringIO()
    Console(file=file, width=100).print(result_table(result(), ["background", "a", "b"], "Test"))
    rows = {cells[1].strip(): cells[2:4] for line in file.getvalue().splitlines() if len(cells := line.split("|")) > 3}
    expected = {
        "background": (5 / 6, 6 / 8),
        "a": (2 / 3, 0.0),
        "b": (math.nan, math.nan),
        "mIoU": ((5 / 6 + 2 / 3) / 2, 6 / 16),
        "pixel accuracy": (7 / 8, 6 / 8),
    }
    for name, figures in expected.items():
        assert [cell.strip() for cell in rows[name]] == ["-" if math.isnan(f) else f"{f:.4f}" for f in figures]


def test_the_record_is_valid_json_without_nan():
    record = json.loads(json.dumps(result_record(result(), ["background", "a", "b"]), allow_nan=False))
    assert record["iou"]["b"] is None
    assert record["images"] == 1


def test_of_a_resumed_run_the_best_epoch_may_lie_before_the_interruption(capsys):
    def trained(table, epoch, of_a):
        trainer = SimpleNamespace(
            sanity_checking=False, state=SimpleNamespace(fn="fit"), current_epoch=epoch, is_global_zero=True
        )
        task = SimpleNamespace(results={"val": result(of_a)}, class_names=["background", "a", "b"])
        table.on_validation_end(trainer, task)
        table.on_fit_end(trainer, task)
        return capsys.readouterr().out

    before, resumed, better = ResultTable(), ResultTable(), ResultTable()
    trained(before, epoch=3, of_a=1)
    resumed.load_state_dict(before.state_dict())
    assert trained(resumed, epoch=4, of_a=0) == "Best epoch 3, val/miou 0.7500: before the interruption.\n"
    better.load_state_dict({"epoch": 0, "miou": 0.1})
    assert "Validation, best epoch (4)" in trained(better, epoch=4, of_a=1)
