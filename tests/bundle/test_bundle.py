"""The Bundle: equal bits after a round trip, and no answer where anything has changed."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from stagewright.bundle.bundle import BundleSpec, Preprocessing, load_bundle, save_bundle
from stagewright.bundle.preprocessing import logits_of
from stagewright.data.images.decode import decode
from stagewright.errors import BundleError, DataError, StorageError
from stagewright.model.zoo import create_model

CLASSES = ("ant", "bee", "cat", "dog")
VIEW = Preprocessing(24, 0.875, "crop", "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Smooth noise, as far from flat as from white: each channel a few bumps."""
    rough = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def network() -> nn.Module:
    """A network whose batch norms have seen something, so that its answers differ between pictures."""
    torch.manual_seed(3)
    model = create_model("cifar_resnet18", len(CLASSES), image_size=24, options={"width": 8, "blocks": [1, 1]})
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.randn(8, 3, 24, 24))
    return model


SPEC = BundleSpec(
    model="cifar_resnet18",
    options={"width": 8, "blocks": [1, 1]},
    image_size=24,
    classes=CLASSES,
    preprocessing=VIEW,
    training={"top1": {"val": 97.12, "test": np.float64(96.5)}, "weights": "ema", "step": np.int64(7), "group": None},
)
GOLDEN: list[tuple[bytes | Image.Image, str]] = [
    (encoded(picture(1)), ".jpg"),
    (encoded(picture(2, (31, 50)), "WEBP"), "webp"),
    (picture(3), ""),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "run" / "model", network(), SPEC, GOLDEN)
    return tmp_path / "run" / "model"


def test_round_trip_gives_the_models_own_logits_bit_for_bit(folder: Path) -> None:
    bundle = load_bundle(folder)
    views = [VIEW.view(decode(encoded(picture(seed)))) for seed in range(5)]
    images = VIEW.batch(views, torch.device("cpu"))
    own = network().eval()
    assert torch.equal(logits_of(bundle.model, images), logits_of(own, images))
    assert not bundle.model.training
    assert bundle.classes == CLASSES
    assert bundle.preprocessing == VIEW


def test_a_run_is_as_good_as_its_bundle(folder: Path) -> None:
    assert load_bundle(folder.parent).spec.classes == CLASSES
    assert load_bundle(str(folder.parent)).folder == folder


def test_what_the_folder_holds(folder: Path) -> None:
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == [
        "README.md",
        *("golden.safetensors", "golden/00.jpg", "golden/01.webp", "golden/02.png"),
        *("model.json", "weights.safetensors"),
    ]
    content = json.loads((folder / "model.json").read_text())
    assert (folder / "golden/00.jpg").read_bytes() == GOLDEN[0][0], "the original bytes"
    assert content["model"]["name"] == "stagewright:cifar_resnet18"
    assert content["training"]["step"] == 7
    assert set(content["files"]) == set(names) - {"model.json"}
    assert {"torch", "pillow", "timm"} <= content["versions"].keys()
    text = (folder / "README.md").read_text()
    assert "ant, bee, cat, dog" in text
    assert "| top1 val | 97.12 % |" in text
    assert "24 x 24 pixels (bilinear" in text


def test_saving_replaces_the_earlier_one_and_leaves_nothing_beside_it(folder: Path) -> None:
    (folder / "stray").touch()
    save_bundle(folder, network(), SPEC, GOLDEN[:1])
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert not (folder / "stray").exists()
    assert len(list((folder / "golden").iterdir())) == 1
    load_bundle(folder)


def test_a_crash_between_the_renames_loses_nothing(folder: Path) -> None:
    folder.rename(folder.with_name(".model.old"))
    assert load_bundle(folder.parent).classes == CLASSES
    assert load_bundle(folder).classes == CLASSES


def test_saving_does_not_disturb_the_model_or_the_random_stream(tmp_path: Path) -> None:
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    save_bundle(tmp_path / "model", model, SPEC, GOLDEN)
    load_bundle(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_spec_that_does_not_describe_the_model(tmp_path: Path) -> None:
    wrong = BundleSpec("cifar_resnet18", CLASSES, VIEW, 24, {"width": 16, "blocks": [1, 1]})
    with pytest.raises(BundleError, match="the weights do not fit cifar_resnet18"):
        save_bundle(tmp_path / "model", network(), wrong, GOLDEN)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        save_bundle(tmp_path / "file" / "model", network(), SPEC, [])


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Tampers with model.json, with hashes that fit whatever the files are now."""
    content = json.loads((folder / "model.json").read_text())
    change(content)
    for name in content["files"]:
        content["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(content))


def weaken(folder: Path) -> None:
    tensors = load_file(folder / "weights.safetensors")
    tensors["layer2.0.conv1.weight"] = tensors["layer2.0.conv1.weight"] * 1.02
    save_file(tensors, folder / "weights.safetensors")


TAMPERINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "mean": lambda content: content["preprocessing"].update(mean=[0.5, 0.456, 0.406]),
    "std": lambda content: content["preprocessing"].update(std=[0.225, 0.225, 0.225]),
    "interpolation": lambda content: content["preprocessing"].update(interpolation="bicubic"),
    "crop": lambda content: content["preprocessing"].update(crop=0.9),
    "fit": lambda content: content["preprocessing"].update(fit="squash"),
}


def test_an_untouched_folder_passes_after_the_editing_that_tampers(folder: Path) -> None:
    edit(folder, lambda content: None)
    load_bundle(folder)


@pytest.mark.parametrize("what", TAMPERINGS)
def test_a_tampered_view_is_found_by_replay(folder: Path, what: str) -> None:
    edit(folder, TAMPERINGS[what])
    with pytest.raises(BundleError, match=r"output has changed: on golden/0\d\.\w+ a logit differs by") as error:
        load_bundle(folder)
    assert "differences up to" in error.value.allowed
    assert "verify=False" in error.value.remedy
    load_bundle(folder, verify=False)


def test_a_tampered_weight_is_found_by_its_hash_and_by_replay(folder: Path) -> None:
    weaken(folder)
    with pytest.raises(BundleError, match=r"weights.safetensors is not the file that was saved"):
        load_bundle(folder)
    edit(folder, lambda content: content["versions"].update(torch="1.0"))
    with pytest.raises(BundleError, match="a logit differs by") as error:
        load_bundle(folder)
    assert f"torch 1.0 then, {metadata.version('torch')} now" in error.value.allowed


def test_classes_in_another_order_are_found(folder: Path) -> None:
    edit(folder, lambda content: content.update(classes=["bee", "ant", "cat", "dog"]))
    with pytest.raises(BundleError, match=r"class 0 of model.json is 'bee', but was 'ant'"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "golden.safetensors", "golden/01.webp"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        load_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("classes"), "classes: it is missing"),
        (lambda content: content.update(classes=[1, 2, 3, 4]), "classes.0: 1: input should be a valid string"),
        (lambda content: content["preprocessing"].update(image_size=10**9), "preprocessing.image_size: 1000000000"),
        (lambda content: content["preprocessing"].update(std=[0, 1, 1]), "preprocessing.std.0: 0"),
        (lambda content: content["preprocessing"].update(crop="x"), "preprocessing.crop: 'x'"),
        (lambda content: content.update(versions=[]), "versions"),
        (lambda content: content["preprocessing"].pop("crop"), "crop"),
        (lambda content: content.update(num_classes=3), "4 classes are named, num_classes is 3"),
        (lambda content: content.update(golden=["99.jpg"]), "files does not list the golden samples"),
        (lambda content: content.update(format=99), "is of format 99"),
        (lambda content: content["model"].update(name="timm:gone_away"), "the weights do not fit timm:gone_away"),
        (lambda content: content["model"]["options"].update(width=4), "the weights do not fit"),
    ],
)
def test_a_damaged_description(folder: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    edit(folder, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(folder)


def test_damaged_json_and_no_bundle_at_all(folder: Path, tmp_path: Path) -> None:
    (folder / "model.json").write_text('{"format": 1,')
    with pytest.raises(BundleError, match=r"model.json is damaged"):
        load_bundle(folder)
    with pytest.raises(BundleError, match="does not exist"):
        load_bundle(tmp_path / "nowhere")
    (folder / "model.json").unlink()
    with pytest.raises(BundleError, match="contains no trained model"):
        load_bundle(folder.parent)
    (folder.parent / "plan.json").touch()
    with pytest.raises(BundleError) as unfinished:
        load_bundle(folder.parent)
    assert f"stagewright finish {folder.parent}" in unfinished.value.remedy


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "deep").mkdir(parents=True)
    for seed, name in enumerate(("b.jpg", "a.png", "deep/c.webp")):
        picture(seed).save(root / name)
    (root / "broken.jpg").write_bytes(b"no picture at all")
    (root / "notes.txt").write_text("not looked at")
    return root


def test_predict_takes_folders_and_survives_bad_files(folder: Path, photos: Path) -> None:
    bundle = load_bundle(folder)
    answers = list(bundle.predict(photos, batch_size=2, topk=2))
    names = [str(photos / name) for name in ("a.png", "b.jpg", "broken.jpg", "deep/c.webp")]
    assert [answer.path for answer in answers] == names
    assert [answer.error is None for answer in answers] == [True, True, False, True]
    assert "not a picture" in str(answers[2].error)
    assert answers[2].classes == ()
    for answer in answers:
        if answer.error is None:
            (first, high), (second, low) = answer.classes
            assert {first, second} <= set(CLASSES)
            assert 1 >= high >= low >= 0


def test_predict_is_deterministic_and_its_probabilities_are_the_softmax(folder: Path, photos: Path) -> None:
    bundle = load_bundle(folder)
    files = [photos / "a.png", photos / "b.jpg"]
    answers = list(bundle.predict(files, topk=9))
    assert answers == list(bundle.predict([str(file) for file in files], topk=9))
    images = VIEW.batch([VIEW.view(decode(file.read_bytes())) for file in files], torch.device("cpu"))
    expected = logits_of(bundle.network.present(), images).double().softmax(dim=1)
    for answer, row in zip(answers, expected, strict=True):
        assert [name for name, _ in answer.classes] == [CLASSES[at] for at in row.argsort(descending=True).tolist()]
        assert dict(answer.classes) == {name: float(p) for name, p in zip(CLASSES, row, strict=True)}


def test_predict_takes_pillow_pictures_of_any_mode(folder: Path) -> None:
    bundle = load_bundle(folder)
    image = picture(1)
    grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 256)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # the viewer turns it clockwise
    answers = list(bundle.predict([image, image.convert("RGBA"), grey, turned], topk=1, batch_size=8))
    assert [answer.path for answer in answers] == ["picture 0", "picture 1", "picture 2", "picture 3"]
    assert answers[0].classes[0] == answers[1].classes[0] == answers[3].classes[0]
    (alone,) = bundle.predict(image, topk=1)
    assert alone.classes[0][0] == answers[0].classes[0][0]


def test_predict_takes_pixels_bytes_and_open_files_also_mixed(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(folder)
    picture(1).save(tmp_path / "one.png")
    data, pixels = (tmp_path / "one.png").read_bytes(), np.asarray(picture(1))
    (expected,) = bundle.predict(tmp_path / "one.png")
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    with (tmp_path / "one.png").open("rb") as file:
        given = [
            *(tmp_path / "one.png", str(tmp_path / "one.png"), picture(1), pixels, bgr[:, :, ::-1]),
            *(torch.from_numpy(pixels.copy()).permute(2, 0, 1), data, bytearray(data), memoryview(data)),
            *(io.BytesIO(data), file),
        ]
        answers = list(bundle.predict(given))
    assert [answer.error for answer in answers] == [None] * len(given)
    for answer in answers:
        assert dict(answer.classes) == pytest.approx(dict(expected.classes))
    assert answers[3].path == "picture 3" and answers[-1].path == str(tmp_path / "one.png")
    for one in (pixels, data, io.BytesIO(data), torch.from_numpy(pixels.copy()).permute(2, 0, 1)):
        (alone,) = bundle.predict(one)
        assert dict(alone.classes) == pytest.approx(dict(expected.classes))
    grey = np.asarray(picture(1).convert("L"))
    flat, deep = bundle.predict([grey, grey[:, :, None]])
    assert flat.classes == deep.classes
    (broken,) = bundle.predict(b"no picture")
    assert broken.classes == () and "not a picture" in str(broken.error)


@pytest.mark.parametrize(
    ("given", "said", "remedy"),
    [
        (np.zeros((9, 9, 3)), r"an array of float64 with the shape \(9, 9, 3\) is not an image", "uint8"),
        (np.zeros((3, 9, 8), np.uint8), r"shape \(3, 9, 8\)", r"transpose\(1, 2, 0\)"),
        (np.zeros((2, 9, 9, 3), np.uint8), r"shape \(2, 9, 9, 3\)", r"predict\(list\(array\)\)"),
        (np.zeros((9, 9, 4), np.uint8), r"shape \(9, 9, 4\)", ":3"),
        (np.zeros((0, 9, 3), np.uint8), r"shape \(0, 9, 3\)", "one image"),
        (torch.zeros(3, 9, 9), r"a tensor of float32 with the shape \(3, 9, 9\)", "not normalised"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), r"shape \(9, 9, 3\)", r"permute\(2, 0, 1\)"),
        (None, "NoneType is not an image", "one of these"),
        ([7], "int is not an image", "one of these"),
        (io.StringIO("x"), "a text file is not an image", '"rb"'),
    ],
    ids=[
        "float64",
        "channels first",
        "four axes",
        "alpha",
        "empty",
        "float32",
        "channels last",
        "None",
        "int",
        "text file",
    ],
)
def test_predict_says_which_pixels_it_takes(folder: Path, given: Any, said: str, remedy: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        load_bundle(folder).predict(given)
    assert "a uint8 array (height, width, 3) in the order RGB" in error.value.allowed
    assert re.search(remedy, error.value.remedy)


def test_predict_is_lazy_but_checks_its_inputs_at_once(folder: Path, photos: Path) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(DataError, match="there is no such file"):
        bundle.predict(photos / "nothing.jpg")
    with pytest.raises(DataError, match="topk 0"):
        bundle.predict(photos, topk=0)


def test_a_model_of_timm_and_one_of_torchvision_come_back(tmp_path: Path) -> None:
    for name in ("timm:test_vit", "mobilenet_v3_small"):
        model = create_model(name, 4, image_size=64)
        spec = BundleSpec(name, CLASSES, VIEW, 64) if "vit" not in name else BundleSpec(name, CLASSES, WIDE, 64)
        save_bundle(tmp_path / name, model, spec, GOLDEN)
        assert load_bundle(tmp_path / name).spec.model in ("timm:test_vit", "torchvision:mobilenet_v3_small")


WIDE = Preprocessing(32, 1.0, "squash", "bicubic", VIEW.mean, VIEW.std)


@pytest.mark.parametrize("name", ["../../secret", "/proc/kmsg", "golden/../../x.png", "golden/", ""])
def test_a_path_out_of_the_folder_is_refused_before_it_is_opened(folder: Path, name: str) -> None:
    content = json.loads((folder / "model.json").read_text())
    content["files"][name] = "0" * 64
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"model.json is damaged: files"):
        load_bundle(folder)


def test_the_card_is_for_people(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_bytes((card + "Trained for the spring count.\n").replace("\n", "\r\n").encode())
    load_bundle(folder)
    (folder / "README.md").unlink()
    load_bundle(folder)


def test_types_are_exact_and_keys_are_given_once(folder: Path) -> None:
    """Attack M10: what one reader takes for 8 another takes for text."""
    text = (folder / "model.json").read_text()
    content = json.loads(text)
    content["preprocessing"]["image_size"] = str(content["preprocessing"]["image_size"])
    damaged = (json.dumps(content), '{"format": 1,' + text[1:], text.encode("utf-16"))
    for one in damaged:
        (folder / "model.json").write_bytes(one if isinstance(one, bytes) else one.encode())
        with pytest.raises(BundleError, match=r"model.json is damaged"):
            load_bundle(folder)


@pytest.mark.parametrize("text", ["[]", "7", "null", '"x"', "{}", "[" * 100_000, "{", "\xff"])
def test_model_json_of_any_other_content_is_refused(folder: Path, text: str) -> None:
    (folder / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(BundleError, match=r"model.json is damaged"):
        load_bundle(folder)
