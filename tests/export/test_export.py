"""Exported files: they compute what the checkpoint does, at any size, and predict the same masks."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from vocseg import (
    FPN,
    DeepLabV3Plus,
    ExportedModel,
    LinearHead,
    PSPNet,
    SegFormerHead,
    SegmentationTask,
    SkipDecoder,
    StridedEncoder,
    Timm,
    UNetDecoder,
    UNetEncoder,
    VOCDataModule,
    VocsegError,
    WholeNetwork,
    export_task,
)
from vocseg.data.synthetic import SYNTHETIC_CLASSES
from vocseg.data.transforms import normalise
from vocseg.export.network import PoolingByProduct
from vocseg.export.scores import score_exported

CLASSES = ["background", *"abc"]
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, fit_flags, succeed_in):
    """A checkpoint whose network pools to several grids, and which was evaluated at another size than the images'."""
    folder = tmp_path_factory.mktemp("fit")
    few = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--name", "tiny"]
    network = ["--model.backbone", "StridedEncoder", "--model.backbone.widths", "[4,8,8]", "--model.decoder", "UPerNet"]
    network += ["--model.decoder.width", "8", "--model.auxiliary", "LinearHead"]
    succeed_in(folder, [*fit_flags, *few, *network, "--data.eval_transforms", "keep_ratio"])
    return folder / "lightning_logs" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def exported(checkpoint, succeed_in, tmp_path_factory):
    """Files by format, and what the command printed."""
    pytest.importorskip("onnxruntime", reason="the extra vocseg[export] is not installed")
    folder = tmp_path_factory.mktemp("exported")
    files = {"onnx": folder / "model.onnx", "torch_export": folder / "model.pt2"}
    printed = {
        name: succeed_in(folder, ["export", "--ckpt_path", checkpoint, "--format", name, "--to", path])
        for name, path in files.items()
    }
    return files, printed


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photographs of all kinds, and a file that is none."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 12, 4), dtype=np.uint8)
    image = Image.fromarray(pixels[..., :3]).resize((90, 70))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(folder / "rotated.jpg", exif=rotated)
    image.convert("L").save(folder / "grey.png")
    Image.fromarray(pixels).resize((41, 33)).save(folder / "alpha.png")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    (folder / "broken.jpg").write_bytes(b"no photograph")
    return folder


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_a_file_computes_what_the_checkpoint_does_at_any_size(kind, exported, checkpoint):
    model, task = ExportedModel(exported[0][kind], threads=1), SegmentationTask.from_run(checkpoint)
    for shape in ((1, 64, 64), (3, 33, 47), (2, 50, 9)):
        pixels = torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
        with torch.no_grad():
            expected = task(normalise(pixels)).numpy()
        found = model(pixels.numpy())
        assert list(found) == ["labels", "logits"]
        assert found["labels"].dtype == np.uint8
        assert (found["labels"] == expected.argmax(1)).mean() >= 0.9999
        assert np.abs(found["logits"] - expected).max() < 1e-3
    lines = exported[1][kind].splitlines()
    assert [line.split()[0] for line in lines[:7]] == ["Exported", "Input", *["Output"] * 2, *["Verified"] * 3]
    assert all("labels equal 100.0000 %" in line for line in lines[4:7])
    assert "2 images of " in lines[6]


@pytest.mark.parametrize("kind", ["onnx", "torch_export"])
def test_a_file_describes_itself(kind, exported):
    metadata = ExportedModel(exported[0][kind], threads=1).metadata
    assert metadata["class_names"] == list(SYNTHETIC_CLASSES)
    assert metadata["palette"][1] == [128, 0, 0]
    assert metadata["ignore_index"] == 255
    assert np.allclose(metadata["std"], (0.229, 0.224, 0.225))
    assert metadata["checkpoint"] == "tiny/version_0/checkpoints/best.ckpt"
    assert metadata["evaluation"] == {"longest_side": 64, "interpolation": 1, "area": True}
    assert (metadata["input"], metadata["output"], metadata["stride"]) == ("uint8", "labels", 8)


def test_the_sizes_of_an_onnx_file_have_names(exported):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(exported[0]["onnx"], providers=["CPUExecutionProvider"])
    assert [each.shape for each in session.get_inputs()] == [["batch", 3, "height", "width"]]
    assert [each.shape for each in session.get_outputs()] == [
        ["batch", "height", "width"],
        ["batch", len(SYNTHETIC_CLASSES), "height", "width"],
    ]


def test_predictions_without_lightning_and_torch_are_those_of_the_checkpoint(
    exported, checkpoint, photos, tmp_path, vocseg
):
    code = (
        "import json, sys; from vocseg.cli import main; status = main(sys.argv[1:]); "
        "print(json.dumps([status, sorted({'torch', 'lightning', 'albumentations'} & set(sys.modules))]))"
    )
    words = ["--data.predict_path", photos, "--predictions.probabilities", "true", "--predictions.output_dir"]
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", "--model", exported[0]["onnx"], *words, "onnx", "--threads", "1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    *printed, last = done.stdout.splitlines()
    assert json.loads(last) == [1, []], done.stderr
    assert printed == ["Masks written to onnx: 4", "All of them  onnx/index.html"]
    status, _, err = vocseg("predict", "--ckpt_path", checkpoint, *words, "ckpt", *QUIET)
    assert status == 1
    assert done.stderr == err[err.index("vocseg: Not predicted: 1") :]
    assert f"The image {photos / 'broken.jpg'} is not an image." in err
    files = sorted(path.relative_to(tmp_path / "ckpt") for path in (tmp_path / "ckpt").rglob("*.*"))
    assert len(files) > 4 * 5
    assert files == sorted(path.relative_to(tmp_path / "onnx") for path in (tmp_path / "onnx").rglob("*.*"))
    for mask in (tmp_path / "ckpt").glob("*.png"):
        expected, found = np.array(Image.open(mask)), np.array(Image.open(tmp_path / "onnx" / mask.name))
        assert expected.shape == found.shape
        assert (expected == found).mean() >= 0.9999
        scores = [np.load(tmp_path / name / "probabilities" / f"{mask.stem}.npz") for name in ("ckpt", "onnx")]
        assert np.allclose(*(each["probabilities"] for each in scores), atol=2e-3)
    pages = [(tmp_path / name / "index.html").read_text() for name in ("ckpt", "onnx")]
    assert "tiny/<wbr>version_0/<wbr>checkpoints/<wbr>best.ckpt" in pages[1]
    assert pages[0].count('class="card"') == pages[1].count('class="card"') == 4


@pytest.mark.parametrize("listed", [["[{0}, {1}]"], ["{0}", "{1}"]])
def test_images_are_listed_as_for_a_checkpoint(listed, exported, photos, tmp_path, vocseg):
    words = [word.format(photos / "grey.png", photos / "alpha.png") for word in listed]
    status, out, err = vocseg("predict", "--model", exported[0]["onnx"], "--data.predict_path", *words, "--to", "to")
    assert (status, err) == (0, "")
    assert out.startswith("Masks written to to: 2\n")


def test_a_file_for_one_size_says_so(tmp_path):
    with pytest.raises(VocsegError, match="export_task takes a SegmentationTask; got Conv2d"):
        export_task(nn.Conv2d(3, 3, 1), tmp_path / "model.onnx")
    task = SegmentationTask(StridedEncoder(widths=[4, 8]), SkipDecoder, CLASSES)
    path = export_task(task, tmp_path / "my model.pt2", "torch_export", size=(24, 40)).path
    model = ExportedModel(path)
    with pytest.raises(VocsegError, match=r"takes images of 24x40 alone, and this one is prepared as 30x40"):
        model.segment(np.zeros((30, 40, 3), np.uint8))


def test_a_program_of_torch_segments_and_refuses_images_no_larger_than_the_stride(exported, checkpoint, photos):
    model, task = ExportedModel(exported[0]["torch_export"]), SegmentationTask.from_run(checkpoint)
    for name in ("rotated.jpg", "alpha.png"):
        assert (model.segment(photos / name) == task.segment(photos / name)).mean() >= 0.9999
    with pytest.raises(VocsegError, match=r"larger than 8 pixels; got 8x20\. A file of --format onnx takes"):
        model(np.zeros((1, 3, 8, 20), np.uint8))
    with pytest.raises(VocsegError, match="cannot be applied to images float64 1x3x20x20"):
        model(np.zeros((1, 3, 20, 20)))


def test_the_scores_are_those_of_vocseg_test(exported, checkpoint, voc_root, vocseg):
    assert vocseg("test", "--ckpt_path", checkpoint, *QUIET)[0] == 0
    scores = json.loads((checkpoint.parent.parent / "test.json").read_text())
    data = VOCDataModule(str(voc_root), class_names=SYNTHETIC_CLASSES, num_workers=0)
    result = score_exported(ExportedModel(exported[0]["onnx"]), data)
    assert result.miou == pytest.approx(scores["miou"], abs=1e-3)
    with pytest.raises(VocsegError, match=r"class_names=model\.class_names"):
        score_exported(ExportedModel(exported[0]["onnx"]), VOCDataModule(str(voc_root)))


PAIRS = {
    "StridedEncoder, SkipDecoder": lambda: (StridedEncoder(widths=(4, 8, 8)), partial(SkipDecoder, width=8)),
    "StridedEncoder, FPN": lambda: (StridedEncoder(widths=(4, 8, 8)), partial(FPN, width=8)),
    "StridedEncoder, DeepLabV3Plus": lambda: (StridedEncoder(widths=(4, 8, 8)), partial(DeepLabV3Plus, width=8)),
    "StridedEncoder, PSPNet": lambda: (StridedEncoder(widths=(4, 8, 8)), partial(PSPNet, width=8)),
    "ViT, LinearHead": lambda: (Timm("test_vit"), LinearHead),
    "ConvNeXt, SegFormerHead": lambda: (Timm("test_convnext"), partial(SegFormerHead, width=8)),
    "UNetEncoder, UNetDecoder": lambda: (UNetEncoder(width=4), UNetDecoder),
    "WholeNetwork": lambda: (
        WholeNetwork("torchvision.models.segmentation.lraspp_mobilenet_v3_large", {"num_classes": len(CLASSES)}),
        None,
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_networks_of_all_kinds_export(pair, tmp_path):
    """The export itself compares file and task; the sizes of ONNX and of torch.export change in the same way."""
    torch.manual_seed(0)
    backbone, decoder = PAIRS[pair]()
    task = SegmentationTask(backbone, decoder, CLASSES)
    done = export_task(task, tmp_path / "model.pt2", "torch_export", output="probabilities")
    assert done.outputs == ["probabilities", "logits"]
    assert all(check.equal >= 0.9999 and check.difference < 1e-3 for check in done.checks)
    assert task.training


def test_a_transformer_exports_to_onnx_for_one_size_with_logits_of_normalised_images(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra vocseg[export] is not installed")
    task = SegmentationTask(Timm("test_vit"), LinearHead, CLASSES).eval()
    done = export_task(task, tmp_path / "model.onnx", output="logits", image="float", opset=18, size=(32, 49))
    assert "image: [batch, 3, 32, 49], float32, normalised" in str(done)
    model = ExportedModel(done.path, threads=1)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 49, 3), dtype=np.uint8)
    assert list(model(np.zeros((3, 3, 32, 49), np.float32))) == ["logits"]
    assert (model.segment(pixels) == task.segment(pixels)).mean() >= 0.9999


@pytest.mark.parametrize("size", [(3, 7), (1, 1), (2, 12)])
@pytest.mark.parametrize("grid", [(2, 2), (3, 6), (5, 1)])
def test_pooling_by_product_is_adaptive_pooling(grid, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(PoolingByProduct(grid)(x), nn.AdaptiveAvgPool2d(grid)(x))


class OtherWhenExported(nn.Module):
    """A decoder that an exporter sees otherwise than it computes, as a branch in Python may be."""

    def __init__(self, channels, strides, num_classes):
        super().__init__()
        self.head = nn.Conv2d(channels[-1], num_classes, 1)

    def forward(self, features):
        return self.head(features[-1]) + (0.01 if torch.compiler.is_exporting() else 0)


class BranchesOnValues(OtherWhenExported):
    """A decoder that no exporter can follow."""

    def forward(self, features):
        return self.head(features[-1] if features[-1].sum() > 0 else -features[-1])


def test_a_file_that_computes_something_else_is_not_left(tmp_path):
    path = tmp_path / "model.pt2"
    path.write_text("mine")
    task = SegmentationTask(StridedEncoder(widths=(4, 4)), OtherWhenExported, CLASSES)
    with pytest.raises(VocsegError, match=r"model.pt2 exists without a record that vocseg export wrote it"):
        export_task(task, path, "torch_export")
    path.unlink()
    with pytest.raises(
        VocsegError, match=r"does not compute what the checkpoint does, and no file is left: 1 image of"
    ):
        export_task(task, path, "torch_export")
    task = SegmentationTask(StridedEncoder(widths=(4, 4)), BranchesOnValues, CLASSES)
    with pytest.raises(VocsegError, match=r"\(StridedEncoder, BranchesOnValues\) cannot be exported for images of any"):
        export_task(task, path, "torch_export")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "onx"], "--format must be one of onnx, torch_export; got 'onx'. Did you mean 'onnx'?"),
        (["--output", "masks"], "--output must be one of labels, probabilities, logits; got 'masks'."),
        (["--input", "uint16"], "--input must be one of uint8, float; got 'uint16'. Did you mean 'uint8'?"),
        (["--opset", "99"], "--opset must be 18 to 23, which torch's exporter writes; got 99."),
        (["--opset", "x"], "argument --opset: invalid int value: 'x' (see vocseg export --help)"),
        (["--format", "torch_export", "--opset", "18"], "--opset is of --format onnx: leave it out."),
        (["--to", "model.pt"], "A file of the format onnx ends in .onnx; got --to model.pt."),
        (["--size", "0", "9"], "--size must be a height and a width in pixels; got 0 9."),
        (["--ckpt_path", "none.ckpt"], "There is no file none.ckpt."),
        (["--ckpt_path", "none"], "There is no run none"),
        (["--to", "file/model.onnx"], "file/model.onnx cannot be written: file is no folder. Name another file: --to"),
    ],
)
def test_mistakes_are_explained_in_one_line(words, message, checkpoint, vocseg, tmp_path):
    (tmp_path / "file").touch()
    status, out, err = vocseg("export", "--ckpt_path", checkpoint, *words)
    assert (status, out) == (1, "")
    assert err.startswith(f"vocseg: {message}"[:40])
    assert message in err
    assert err.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_size_beyond_memory_is_refused(checkpoint, vocseg):
    status, _, err = vocseg(
        "export", "--ckpt_path", checkpoint, "--format", "torch_export", "--size", "999999", "999999"
    )
    assert status == 1
    assert "--size 999999 999999 needs more than" in err
    assert err.count("\n") == 1


def test_a_missing_package_is_named(checkpoint, vocseg, monkeypatch):
    find = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *more: None if name == "onnxscript" else find(name, *more)
    )
    status, _, err = vocseg("export", "--ckpt_path", checkpoint)
    assert status == 1
    assert err == 'vocseg: --format onnx needs onnxscript: pip install "vocseg[export]"\n'


def test_a_task_can_be_traced_and_pickled(tmp_path):
    """As whole objects; what their files need is this package, and not Lightning's trainer."""
    task = SegmentationTask(StridedEncoder(widths=(4, 8)), LinearHead, CLASSES).eval()
    image = torch.rand(1, 3, 32, 32)
    assert torch.equal(torch.jit.trace(task, image)(image), task(image))
    torch.save(task, tmp_path / "task.pt")
    assert torch.equal(torch.load(tmp_path / "task.pt", weights_only=False)(image), task(image))
