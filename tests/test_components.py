"""Components to configuration and back: what is recorded, what is rebuilt, what is refused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from vocseg import MobileNetV2, Schedule, SkipDecoder, StridedEncoder, VocsegError
from vocseg.components import factory_from_config, to_config


class NoArguments(nn.Module):
    """A user's module whose constructor has no arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)


class SomeArguments(nn.Module):
    """A user's module whose arguments are not recorded."""

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 1)


def test_components_record_positional_keyword_and_default_arguments():
    assert to_config(StridedEncoder("leaky_relu", widths=(8, 16))) == {
        "class_path": "vocseg.StridedEncoder",
        "init_args": {"activation": "leaky_relu", "widths": [8, 16], "freeze": False},
    }


def test_component_built_inside_another_constructor_records_its_own_arguments():
    """Lightning's save_hyperparameters would record those of the outer constructor."""

    class Outer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = SkipDecoder([4], [2], 3, width=width)

    assert to_config(Outer(6).inner, skip=3)["init_args"] == {"width": 6, "dropout": 0.1}


@pytest.mark.parametrize(
    ("component", "config"),
    [
        (None, None),
        ({"class_path": "a.B"}, {"class_path": "a.B"}),
        (nn.ReLU, {"class_path": "torch.nn.modules.activation.ReLU", "init_args": {}}),
        (NoArguments(), {"class_path": f"{__name__}.NoArguments", "init_args": {}}),
        (SomeArguments(), {"unrecorded": f"{__name__}.SomeArguments"}),
        (
            partial(SomeArguments, width=4),
            {"class_path": f"{__name__}.SomeArguments", "init_args": {"width": 4}},
        ),
        (partial(SomeArguments, 4), {"unrecorded": f"{__name__}.SomeArguments"}),
        (partial(SomeArguments, width=object()), {"unrecorded": f"{__name__}.SomeArguments"}),
    ],
)
def test_to_config(component, config):
    assert to_config(component) == config


class VariadicSchedule(Schedule):
    """A user's subclass that passes all its arguments on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_variadic_arguments_are_recorded_only_if_passed_by_name():
    assert to_config(VariadicSchedule(kind="poly", warmup=2))["init_args"] == {"kind": "poly", "warmup": 2}
    assert to_config(VariadicSchedule("poly")) == {"unrecorded": f"{__name__}.VariadicSchedule"}


def test_local_classes_are_not_recorded():
    class Local(nn.Module):
        def __init__(self):
            super().__init__()

    assert "unrecorded" in to_config(Local())


def test_config_builds_an_equal_component():
    original = Schedule("poly", warmup=3)
    assert to_config(factory_from_config(to_config(original), "schedule", Schedule)()) == to_config(original)


def test_copies_keep_the_recorded_arguments():
    backbone = MobileNetV2(output_stride=16)
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert to_config(copied) == to_config(backbone)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"unrecorded": "mine.Net"}, r"does not say how to build its backbone \(mine.Net\)"),
        ({"class_path": "no_such_module.Net"}, "No module named 'no_such_module'"),
        ({"class_path": "vocseg.backbones.ResNett"}, "Did you mean 'ResNet'"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": "true"}}, "no class that can serve"),
        ({"class_path": "os.system"}, "no class that can serve"),
    ],
)
def test_unbuildable_configs_are_refused_and_other_callables_never_called(config, message):
    with pytest.raises(VocsegError, match=message):
        factory_from_config(config, "backbone", torch.nn.Module)
