import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from vocseg import MobileNetV2, Schedule, SkipDecoder, StridedEncoder, VocsegError
from vocseg.components import factory_from_config, to_config


class NoArguments(nn.Module):
    """A stranger's module that needs nothing."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)


class SomeArguments(nn.Module):
    """A stranger's module whose arguments nobody wrote down."""

    def __init__(self, width=3):
        super().__init__()
        self.layer = nn.Linear(width, 1)


def test_our_components_record_defaults_positions_and_keywords():
    assert to_config(StridedEncoder("leaky_relu", widths=(8, 16))) == {
        "class_path": "vocseg.StridedEncoder",
        "init_args": {"activation": "leaky_relu", "widths": [8, 16], "freeze": False},
    }


def test_a_component_built_inside_another_constructor_records_its_own_arguments():
    """Lightning's save_hyperparameters would record the outer constructor's."""

    class Outer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.inner = SkipDecoder([4], [2], 3, width=width)

    assert to_config(Outer(6).inner, skip=3)["init_args"] == {"width": 6, "dropout": 0.1}


@pytest.mark.parametrize(
    ("component", "description"),
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
def test_descriptions(component, description):
    assert to_config(component) == description


class Passing(Schedule):
    """A stranger's subclass that hands on whatever it gets."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def test_arguments_handed_on_are_recorded_by_their_names_or_not_at_all():
    assert to_config(Passing(kind="poly", warmup=2))["init_args"] == {"kind": "poly", "warmup": 2}
    assert to_config(Passing("poly")) == {"unrecorded": f"{__name__}.Passing"}


def test_local_classes_are_not_recorded():
    class Local(nn.Module):
        def __init__(self):
            super().__init__()

    assert "unrecorded" in to_config(Local())


def test_a_description_builds_the_same_component():
    original = Schedule("poly", warmup=3)
    assert to_config(factory_from_config(to_config(original), "schedule", Schedule)()) == to_config(original)


def test_copies_keep_the_record():
    backbone = MobileNetV2(output_stride=16)
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert to_config(copied) == to_config(backbone)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"unrecorded": "mine.Net"}, r"does not say how to build its backbone \(mine.Net\)"),
        ({"class_path": "no_such_module.Net"}, "No module named 'no_such_module'"),
        ({"class_path": "vocseg.backbones.ResNett"}, "Did you mean 'ResNet'"),
        ({"class_path": "subprocess.Popen", "init_args": {"args": "true"}}, "no class that can serve"),
        ({"class_path": "os.system"}, "no class that can serve"),
    ],
)
def test_what_cannot_be_built_is_named_and_nothing_else_is_called(description, message):
    with pytest.raises(VocsegError, match=message):
        factory_from_config(description, "backbone", torch.nn.Module)
