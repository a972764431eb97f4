"""Exported networks without torch: how images are prepared, and how logits become labels."""

import json
import zipfile

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image

from vocseg import ExportedModel, VocsegError
from vocseg.data.transforms import describe_resizing, make_eval_transforms
from vocseg.export.model import label_map, prepare, probability_map
from vocseg.inference import label_map as label_map_of_torch
from vocseg.inference import preprocess
from vocseg.inference import probability_map as probability_map_of_torch

SIZES = [(31, 47), (60, 40), (40, 60), (200, 90), (1, 7)]


@pytest.mark.parametrize(
    ("transforms", "kind"),
    [
        ("resize", "size"),
        ("keep_ratio", "longest_side"),
        ([], None),
        ([{"class_path": "LongestMaxSize", "init_args": {"max_size": 50, "interpolation": 2}}], "longest_side"),
        ([{"class_path": "SmallestMaxSize", "init_args": {"max_size": 20}}, {"class_path": "CLAHE"}], "albumentations"),
    ],
)
def test_images_are_prepared_as_for_evaluation(transforms, kind):
    """Bit by bit, from what JSON keeps."""
    settings = {"eval_transforms": transforms, "image_size": [40, 60]}
    evaluation = json.loads(json.dumps(describe_resizing(make_eval_transforms(settings))))
    assert [name for name in evaluation if name not in ("interpolation", "area")] == ([kind] if kind else [])
    rng = np.random.default_rng(0)
    for size in SIZES[: 3 if kind == "albumentations" else None]:
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        prepared = prepare(pixels, evaluation)
        expected = preprocess(pixels, settings, 3)[0]
        image = torch.from_numpy(prepared.transpose(2, 0, 1).copy())
        from vocseg.data.transforms import normalise

        if kind == "albumentations":  # CLAHE has p=0.5, and draws
            assert image.shape == expected.shape
        else:
            assert torch.equal(normalise(image), expected)


@pytest.mark.parametrize("size", SIZES)
def test_labels_and_probabilities_are_those_of_torch(size):
    logits = torch.randn(7, 23, 31, generator=torch.Generator().manual_seed(0))
    labels = label_map(logits.numpy(), size)
    assert labels.dtype == np.uint8
    assert (labels == label_map_of_torch(logits, size).numpy()).mean() > 0.9999
    expected = probability_map_of_torch(logits, size).numpy()
    assert np.abs(probability_map(logits.numpy(), size) - expected).max() < 1e-5
    assert not label_map(np.zeros((3, 4, 5), np.float32), (8, 9)).any()  # the lowest of equal ones


def write_onnx(path):
    """A model of somebody else, which adds an image to itself."""
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Add", ["image", "image"], ["sum"])
    sides = [info("image", onnx.TensorProto.FLOAT, ["n"])], [info("sum", onnx.TensorProto.FLOAT, ["n"])]
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "add", *sides), opset_imports=[opset]), path)


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")


def write_zip_without_its_list(path):
    write_zip(path)
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"????"))


def write_zip_with_json(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/vocseg.json", b"[1")


@pytest.mark.parametrize(
    "write",
    [
        write_onnx,
        write_zip,
        write_zip_without_its_list,
        write_zip_with_json,
        lambda path: path.write_text("not a model"),
        lambda path: path.write_bytes(b""),
        lambda path: Image.new("RGB", (4, 4)).save(path, format="PNG"),
    ],
)
def test_a_file_that_is_no_exported_model_is_refused_in_one_line(write, tmp_path, vocseg):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    write(path)
    status, out, err = vocseg("predict", "--model", path, "--data.predict_path", tmp_path)
    assert (status, out) == (1, "")
    assert err == (
        f"vocseg: {path} is no model that vocseg exported: vocseg export --ckpt_path CKPT writes one, and a checkpoint "
        "is given with --ckpt_path.\n"
    )


def test_a_missing_model_and_a_missing_runtime_are_named(tmp_path, monkeypatch):
    with pytest.raises(VocsegError, match="There is no exported model"):
        ExportedModel(tmp_path / "none.onnx")
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(VocsegError, match=r'pip install "vocseg\[export\]"'):
        ExportedModel(tmp_path / "model.onnx")


def test_a_folder_and_a_number_of_threads_are_refused(tmp_path):
    with pytest.raises(VocsegError, match="is a folder: name the exported file in it; vocseg export"):
        ExportedModel(tmp_path)
    (tmp_path / "exported.onnx").touch()
    with pytest.raises(VocsegError, match=r"name the exported file in it, .*exported\.onnx\."):
        ExportedModel(tmp_path)
    with pytest.raises(VocsegError, match="threads must be at least 1; got 0"):
        ExportedModel(tmp_path / "exported.onnx", threads=0)


def test_a_damaged_program_is_refused(tmp_path):
    path = tmp_path / "model.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/vocseg.json", b"{}")
        archive.writestr("model/data/weights/weight_0", b"12345678")
    path.write_bytes(path.read_bytes().replace(b"12345678", b"12345677"))
    with pytest.raises(VocsegError, match=r"model\.pt2 is damaged \(model/data/weights/weight_0\)"):
        ExportedModel(path)


def test_an_exported_file_and_a_checkpoint_exclude_each_other(tmp_path, vocseg):
    words = ["--model", "model.onnx", "--ckpt_path", "best.ckpt", "--data.predict_path", tmp_path]
    status, _, err = vocseg("predict", *words)
    assert (status, err) == (1, "vocseg: --model names an exported file, which is complete: leave out --ckpt_path.\n")


@pytest.mark.filterwarnings("ignore:Using lambda")
@pytest.mark.parametrize("name", [None, "bound"])
def test_transforms_that_cannot_be_written_are_named(name):
    class Bound(A.ImageOnlyTransform):
        def __init__(self, function):
            super().__init__(p=1)
            self.function = function

    transform = Bound(len) if name else A.Lambda(image=lambda image, **_: image)
    with pytest.raises(VocsegError, match=r"The eval_transforms cannot be written into a file: .*erializable"):
        describe_resizing([transform])
