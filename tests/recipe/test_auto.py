"""auto: what it chooses from made-up facts and why, what is looked at, and that a run goes on with what was chosen."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import typed
from PIL import Image

from stagewright.api.train import train
from stagewright.data.dataset import load_dataset
from stagewright.errors import ModelError, RecipeError
from stagewright.model import availability
from stagewright.model.catalog import find_model
from stagewright.model.zoo import create_model
from stagewright.plan.execution import Execution
from stagewright.plan.plan import DatasetInfo, Measured
from stagewright.plan.resolve import resolve
from stagewright.preflight import survey
from stagewright.preflight.survey import choose_recipe, find_weights
from stagewright.recipe import auto, recipes
from stagewright.recipe.auto import changed_fields, choose, preferred_models, wants_pretrained
from stagewright.recipe.facts import Facts, UserChoices, Weights, why_not_flip
from stagewright.recipe.recipe import Recipe, Stage
from stagewright.recipe.request import RecipeRequest, as_request

CPU = torch.device("cpu")
GIVEN = Weights("w.pth", "mobilenet_v2", "those of w.pth")
FETCHED = Weights("default", "resnet50", "the library's")


def facts(**changes: Any) -> Facts:
    """3,000 photos of ten classes on two cores, without weights; with ``changes``."""
    base = Facts(
        source="photos",
        classes=tuple(f"animal{at}" for at in "abcdefghij"),
        num_train=3000,
        num_val=600,
        smallest=300,
        median=300,
        largest=300,
        side=375,
        longest=2000,
        one_size=False,
    )
    return replace(base, **changes)


def many(count: int) -> tuple[str, ...]:
    return tuple(f"kind of thing {at}" for at in range(count))


SMALL = {"side": 32, "longest": 32, "one_size": True}
CASES: dict[str, Facts] = {
    "photos": facts(),
    "photos with weights": facts(weights=GIVEN),
    "photos on cuda": facts(device="cuda", memory_gb=24.0),
    "photos with weights on cuda": facts(device="cuda", weights=FETCHED),
    "two classes": facts(classes=("cat", "dog"), num_train=40, num_val=10, smallest=20, median=20, largest=20),
    "two classes with weights": facts(classes=("cat", "dog"), num_train=40, smallest=20, largest=20, weights=GIVEN),
    "a picture a class": facts(num_train=10, num_val=0, smallest=1, median=1, largest=1),
    "a picture a class with weights": facts(num_train=10, num_val=0, smallest=1, median=1, largest=1, weights=GIVEN),
    "10,000 classes": facts(classes=many(10_000), num_train=10_000, num_val=0, smallest=1, median=1, largest=1),
    "10,000 classes on cuda": facts(classes=many(10_000), num_train=2_000_000, device="cuda"),
    "uneven": facts(smallest=5, median=100, largest=500),
    "uneven with weights": facts(smallest=5, median=100, largest=500, weights=GIVEN),
    "huge pictures": facts(side=8000, longest=12000, weights=GIVEN),
    "tiny pictures": facts(side=4, longest=6),
    "tiny pictures with weights": facts(side=4, longest=6, weights=GIVEN),
    "cifar": facts(num_train=50_000, **SMALL),
    "cifar on cuda": facts(num_train=50_000, device="cuda", **SMALL),
    "digits": facts(source="digits", classes=tuple("0123456789"), num_train=1257, side=8, longest=8, gray=1.0),
    "imagenet on cuda": facts(classes=many(1000), num_train=1_281_167, num_val=50_000, device="cuda"),
    "many cores": facts(cores=64),
    "one core and little memory": facts(cores=1, memory_gb=2.0, weights=GIVEN),
    "sites": facts(groups=40, weights=GIVEN),
    "a transformer with weights": facts(weights=replace(GIVEN, model="vit_b_16")),
    "a transformer without": facts(choices=UserChoices(model="vit", options={"patch": 4}), **SMALL),
    "a model asked for": facts(choices=UserChoices(model="resnet34")),
    "everything asked for": facts(
        choices=UserChoices("resnet18", "w.pth", {}, 100, 10), weights=replace(GIVEN, model="resnet18")
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_choice_is_a_recipe_with_a_plan(case: str) -> None:
    seen = CASES[case]
    recipe, _ = choose(seen)
    assert recipe.name == "auto" and recipes.from_dict(yaml.safe_load(recipes.to_yaml(recipe))) == recipe
    info = DatasetInfo(num_train=seen.num_train, num_val=seen.num_val, num_test=0, classes=seen.classes, digest="")
    plan = resolve(recipe, info, measured=Measured(upper="last:2"))
    assert plan.total_steps >= 50, "a handful of updates learns nothing"
    assert all(stage.batch_size <= max(8, seen.num_train) for stage in plan.stages)
    assert choose(seen) == choose(seen), "the same facts give the same recipe"


@pytest.mark.parametrize("case", CASES)
def test_reasons_name_every_field_that_is_not_a_default(case: str) -> None:
    recipe, reasons = choose(CASES[case])
    named = {path for reason in reasons for path in reason.fields}
    unexplained = [path for path in changed_fields(recipe) if not named & {path, path.partition(".")[0]}]
    inside_stages = any(path.startswith("stages") for path in named)
    assert [path for path in unexplained if not (path == "stages" and inside_stages)] == []
    for path in ("model.name", "image_size", "batch_size", "epochs", "augment.flip"):
        own = [reason.text for reason in reasons if path in reason.fields]
        assert len(own) == 1 and not own[0].startswith("The rest"), f"{path} is a choice with a reason of its own"
    for reason in reasons:
        assert reason.text.endswith(".") and "\n" not in reason.text and not reason.text.endswith("..")


def test_an_unexplained_field_would_be_seen() -> None:
    changed = choose(facts())[0].changed(sampling="balanced", model={"name": "vit"})
    assert {"sampling", "model.name", "image_size"} <= set(changed_fields(changed))
    assert changed_fields(Recipe()) == ()


@pytest.mark.parametrize(
    ("case", "model", "weights", "size"),
    [
        ("photos", "cifar_resnet18", None, 64),
        ("photos with weights", "mobilenet_v2", "w.pth", 160),
        ("photos on cuda", "resnet18", None, 224),
        ("photos with weights on cuda", "resnet50", "default", 224),
        ("imagenet on cuda", "resnet50", None, 224),
        ("cifar", "cifar_resnet18", None, 32),
        ("digits", "cifar_resnet18", None, 16),
        ("tiny pictures", "cifar_resnet18", None, 16),
        ("tiny pictures with weights", "mobilenet_v2", "w.pth", 160),
        ("huge pictures", "mobilenet_v2", "w.pth", 160),
        ("a transformer with weights", "vit_b_16", "w.pth", 224),
        ("a transformer without", "vit", None, 32),
        ("a model asked for", "resnet34", None, 128),
        ("everything asked for", "resnet18", "w.pth", 100),
    ],
)
def test_model_and_size(case: str, model: str, weights: str | None, size: int) -> None:
    recipe, _ = choose(CASES[case])
    assert (recipe.model.name, recipe.model.weights, recipe.image_size) == (model, weights, size)


def test_fewer_pictures_are_seen_more_often_within_bounds() -> None:
    for weights in (GIVEN, Weights(None, None, "none")):
        lengths = [
            choose(facts(num_train=count, weights=weights))[0].epochs.value for count in (20, 500, 5_000, 500_000)
        ]
        assert (
            lengths == sorted(lengths, reverse=True)
            and lengths[0] > lengths[-1]
            and lengths[-1] >= 3
            and lengths[0] <= 80
        )


def test_rare_classes_are_shown_more_often_only_where_classes_are_uneven() -> None:
    assert choose(CASES["uneven"])[0].sampling == "square_root"
    assert choose(facts(smallest=200, largest=400))[0].sampling == "natural"
    assert any("100 times" in reason.text for reason in choose(CASES["uneven"])[1])


def test_few_validation_pictures_do_not_choose_between_evaluations() -> None:
    for weights in (GIVEN, Weights(None, None, "none")):
        assert [choose(facts(num_val=count, weights=weights))[0].eval.select for count in (0, 270, 5000)] == [
            *("last", "last", "best")
        ]


def test_mixing_is_for_long_runs_from_scratch_alone() -> None:
    def mixed(seen: Facts) -> bool:
        return any(stage.mix is not None and stage.mix.cutmix > 0 for stage in choose(seen)[0].stages)

    assert mixed(facts(num_train=30_000, device="cuda")) and not mixed(CASES["cifar"])
    assert not mixed(CASES["photos with weights on cuda"]) and not mixed(CASES["photos"])
    assert not mixed(facts(num_train=30_000, device="cuda", choices=UserChoices(epochs=5)))
    digits = replace(CASES["digits"], num_train=30_000, device="cuda", weights=Weights(None, None, "none"))
    assert not mixed(digits)


@pytest.mark.parametrize(
    ("source", "classes", "matters"),
    [
        ("digits", ("a", "b"), True),
        ("torchvision:SVHN", tuple("0123456789"), True),
        ("torchvision:CIFAR10", ("cat", "dog"), False),
        ("torchvision:FashionMNIST", ("Coat", "Bag"), False),
        ("x", tuple("0123456789"), True),
        ("x", ("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five", "6 - six", "7 - seven"), True),
        ("x", tuple(f"digit_{at}" for at in range(10)), True),
        ("x", ("0", "1"), False),
        ("x", tuple(f"class{at}" for at in range(10)), False),
        ("x", tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), True),
        ("x", ("turn_left", "turn_right", "ahead"), True),
        ("x", ("left-handed", "ambidextrous"), False),
        ("x", ("cleft", "cright"), False),
    ],
)
def test_flips_where_a_mirrored_picture_means_the_same(source: str, classes: tuple[str, ...], matters: bool) -> None:
    seen = facts(source=source, classes=classes)
    assert (why_not_flip(seen) is not None) is matters
    for weights in (GIVEN, Weights(None, None, "none")):
        recipe, reasons = choose(replace(seen, weights=weights))
        flips = [
            stage.augment.flip
            for stage in recipe.resolved_stages()
            if stage.augment and stage.train in ("all", "upper")
        ]
        assert set(flips) == ({0.0} if matters else {0.5})
        assert any(("No flips" in reason.text) is matters for reason in reasons if "flips" in reason.text.lower())


def test_whether_weights_are_wanted_at_all() -> None:
    assert wants_pretrained(facts()) and wants_pretrained(CASES["cifar"])
    assert not wants_pretrained(CASES["digits"])
    assert wants_pretrained(replace(CASES["digits"], choices=UserChoices(model="resnet18")))
    assert not wants_pretrained(facts(choices=UserChoices(weights="none")))
    assert not wants_pretrained(facts(choices=UserChoices(options={"width": 4})))


def test_a_cpu_trains_the_upper_blocks_on_cached_views_of_few_pictures() -> None:
    def upper(count: int, **more: Any) -> Stage:
        return choose(facts(num_train=count, weights=GIVEN, **more))[0].resolved_stages()[1]

    assert [upper(count).train for count in (40, 5_000, 500_000)] == ["upper"] * 3
    views = [upper(count).cache for count in (40, 5_000, 5_001, 20_000, 20_001)]
    assert [one and one.views for one in views] == [8, 8, 4, 4, None]
    assert upper(500, device="cuda").train == "all" and upper(500, device="cuda").cache is None


def test_a_head_that_is_no_linear_layer_is_trained_by_updates() -> None:
    for seen in (facts(weights=GIVEN), facts(weights=FETCHED, device="cuda")):
        optimum, updates = (
            choose(replace(seen, linear_head=linear))[0].resolved_stages()[0] for linear in (True, False)
        )
        assert optimum.fit == "optimum" and updates.fit == "updates"
        assert updates.epochs is not None and updates.epochs.value >= 12


def test_the_run_may_end_with_the_head_where_that_can_be_told() -> None:
    assert [choose(facts(num_val=count, weights=GIVEN))[0].stop.head_suffices for count in (0, 49, 50)] == [
        *(False, False, True)
    ]


# What is looked at


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGEWRIGHT_OFFLINE", "1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the libraries' weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def test_a_survey_counts_training_pictures_and_looks_at_colour(no_network: None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, count, gray in (("many", 30, True), ("few", 4, False)):
        (tmp_path / name).mkdir()
        for at in range(count):
            pixels = random.integers(0, 256, (24, 40, 1 if gray else 3), dtype=np.uint8)
            Image.fromarray(np.broadcast_to(pixels, (24, 40, 3))).save(tmp_path / name / f"{at}.png")
    dataset = load_dataset(str(tmp_path), Recipe().data)
    seen = survey.survey(dataset, CPU, UserChoices(weights="none"))
    train_rows = dataset.manifest.rows("train")
    assert (seen.num_train, seen.side, seen.longest, seen.one_size) == (len(train_rows), 24, 40, True)
    assert 1 <= seen.smallest < seen.largest < 30 and 0.5 < seen.gray < 1.0 and seen.device == "cpu" and seen.cores >= 1
    assert seen.weights.value is None


def test_weights_at_hand_come_before_the_network(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[str] = []

    def say_no(address: str, seconds: float) -> bool:
        asked_for.append(address)
        return False

    monkeypatch.setattr(survey, "answers", say_no)
    offline = find_weights(facts())
    assert offline.value is None and "download.pytorch.org does not answer" in offline.why
    assert len(asked_for) == 1 and "mobilenet_v2" in asked_for[0], "one question, for the network that would be taken"
    source = availability.library_source(find_model("resnet18"))
    assert source is not None
    (hub / Path(source.address).name).write_bytes(b"weights")
    assert (find_weights(facts()).model, find_weights(facts()).value) == ("resnet18", "default")
    monkeypatch.setattr(survey, "answers", lambda address, seconds: True)
    assert find_weights(facts()).model == "mobilenet_v2"
    assert find_weights(facts(device="cuda")).model == preferred_models(facts(device="cuda"))[0]
    assert find_weights(facts(choices=UserChoices(model="resnet34"))).model == "resnet34"


def test_nobody_is_asked_where_the_answer_does_not_matter(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(address: str, seconds: float) -> bool:
        raise AssertionError(f"{address} was asked")

    monkeypatch.setattr(survey, "answers", never)
    assert find_weights(CASES["digits"]).value is None
    assert find_weights(facts(choices=UserChoices(weights="none"))).value is None
    assert find_weights(facts(choices=UserChoices(model="cifar_resnet18"))).value is None
    given = find_weights(facts(choices=UserChoices(model="resnet18", weights="default")))
    assert (given.value, given.model) == ("default", "resnet18")


@pytest.fixture
def silent_host() -> Iterator[str]:
    """A host that takes calls and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"


def test_a_silent_host_is_not_waited_for(silent_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    began = time.perf_counter()
    assert not availability.answers(silent_host, 0.3)
    assert time.perf_counter() - began < 2.0


def test_a_look_up_without_an_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up of a name knows no time limit: it may hang where no time limit of a connection counts yet."""
    for name in ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    choices, enough = threading.Event(), threading.Event()

    def hang(request: object, timeout: float) -> None:
        choices.set()
        enough.wait(10.0)
        raise OSError("no answer")

    monkeypatch.setattr(availability, "urlopen", hang)
    began = time.perf_counter()
    assert not availability.answers("https://download.pytorch.org/weights.pth", 0.2) and choices.is_set()
    assert time.perf_counter() - began < 2.0
    enough.set()


def test_a_host_that_answers_is_reached_and_a_missing_file_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Host(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200 if self.path == "/there" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    for name in ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert availability.answers(f"{address}/there", 5.0) and not availability.answers(f"{address}/gone", 5.0)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not availability.answers(f"{address}/there", 5.0)
        server.shutdown()
    assert not availability.answers("no address", 1.0)


def test_the_network_of_a_weights_file_is_told_from_its_tensors(tmp_path: Path) -> None:
    for name, model in (("a", "mobilenet_v3_small"), ("wrapped", "resnet18")):
        state = {f"module.{key}": value for key, value in create_model(model, 7, image_size=64).state_dict().items()}
        torch.save({"state_dict": state}, tmp_path / f"{name}.pth")
        found = availability.architecture_of(tmp_path / f"{name}.pth")
        assert found is not None and found.model == model
    foreign = create_model("cifar_resnet18", 7, image_size=32, options={"width": 4}).state_dict()
    torch.save(foreign, tmp_path / "resnet18.pth")  # the name may hint, the tensors decide
    assert availability.architecture_of(tmp_path / "resnet18.pth") is None
    assert availability.architecture_of(tmp_path / "absent.pth") is None
    unknown = find_weights(facts(choices=UserChoices(weights=str(tmp_path / "resnet18.pth"))))
    assert unknown.model is None and "could not be told" in unknown.why
    assert choose(facts(weights=unknown))[0].model.name == "mobilenet_v2"


# From the command line and from Python


def test_what_is_given_is_chosen_around_and_has_the_last_word() -> None:
    given = ["model.name=resnet18", "optimizer.weight_decay=0.3", "image_size=96", "data.val=0.3", "seed=5"]
    waiting = RecipeRequest(overrides=tuple(given))
    assert (
        waiting.choices.model,
        waiting.choices.image_size,
        waiting.preliminary.data.val,
        waiting.preliminary.seed,
    ) == (
        "resnet18",
        96,
        0.3,
        5,
    )
    recipe, reasons = waiting.resolve(facts(choices=waiting.choices))
    assert (recipe.model.name, recipe.optimizer.weight_decay, recipe.image_size, recipe.seed) == (
        "resnet18",
        0.3,
        96,
        5,
    )
    texts = [reason.text for reason in reasons]
    assert any("weight_decay" in text and text.startswith("As given") for text in texts)
    assert not any("Nesterov" in text for text in texts), "a reason for what was overridden would mislead"
    assert all(text in recipe.description for text in texts[1:])
    assert as_request("auto", ["lr.peak=1"]) != as_request("auto") and as_request("quick").preliminary == recipes.load(
        "quick"
    )
    with pytest.raises(RecipeError, match=r"data.vall: unknown field"):
        as_request("auto", ["data.vall=0.3"])


def test_train_without_a_recipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_network: None, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--epochs", "1", "--set", "model.options.width=4", "--set", "data.val=0.4", "--set", "data.test=0.4"]
    code, out, err = typed(capsys, monkeypatch, "train", "digits", "--no-pages", *flags)
    assert code == 0, err
    assert "No flips: the pictures show characters" in out and out.index("Recipe auto:") < out.index("Writing to")
    run = tmp_path / "runs" / "auto-1"
    written = (run / "recipe.yaml").read_text()
    assert "- No flips: the pictures show characters" in written
    recipe = recipes.load(str(run / "recipe.yaml"))
    assert recipe.augment.flip == 0.0 and recipe.epochs.value == 1 and recipe.model.options == {"width": 4}
    assert json.loads((run / "summary.json").read_text())["recipe"] == "auto"


def test_plan_tells_the_reasons_and_recipes_explains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    code, out, err = typed(capsys, monkeypatch, "plan", "digits")
    assert code == 0, err
    assert "- 16 px: the shorter sides of the pictures are 8 px" in out and "recipe auto" in out
    code, out, _ = typed(capsys, monkeypatch, "plan", "digits", "--json")
    assert code == 0 and "- 16 px" in json.loads(out)["recipe"]["description"]
    assert typed(capsys, monkeypatch, "recipes", "show", "auto")[1] == auto.EXPLANATION
    assert any(line.startswith("auto ") for line in typed(capsys, monkeypatch, "recipes")[1].splitlines())
    with pytest.raises(RecipeError, match=r"auto is chosen for a data set[\s\S]*stagewright plan DATA"):
        recipes.load("auto")
    assert "auto" not in recipes.shipped()


def test_an_unknown_model_is_refused_by_name(no_network: None, tmp_path: Path, picture_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"resnet5[\s\S]*resnet50"):
        train(picture_folder, overrides=["model.name=resnet5"], out=tmp_path / "run", say=lambda text: None)
    assert not (tmp_path / "run").exists()


def test_a_resume_does_not_choose_anew(
    no_network: None, hub: Path, tmp_path: Path, picture_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["model.options.width=4", "image_size=16", "epochs=1ep", "data.val=0.2", "data.test=0.2"]

    def go(**more: Any) -> Path:
        quiet = Execution(pages=False, quiet=True)
        return train(
            picture_folder, overrides=given, out=tmp_path / "run", execution=quiet, say=lambda text: None, **more
        ).path

    first = go()
    plan = json.loads((first / "plan.json").read_text())
    monkeypatch.setattr(survey, "survey", _refuse)
    assert go(resume=True) == first and json.loads((first / "plan.json").read_text()) == plan
    given.append("lr.peak=0.01")
    forked = go(resume=True)
    assert forked != first and json.loads((forked / "plan.json").read_text())["recipe"]["lr"]["peak"] == 0.01


def _refuse(*_: object) -> Facts:
    raise AssertionError("it was looked at anew")


def test_other_pictures_are_chosen_for_anew(no_network: None, picture_folder: Path) -> None:
    dataset = load_dataset(str(picture_folder), Recipe().data)
    waiting = RecipeRequest()
    recipe, lines = choose_recipe(waiting, dataset, CPU)
    assert lines[0].startswith("Recipe auto: chosen for 42 training pictures of 3 classes")
    same = resolve(recipe.changed(seed=7), dataset.manifest.info())
    assert choose_recipe(waiting, dataset, CPU, same) == (recipe.changed(seed=7), ())
    other = same.model_copy(update={"dataset": same.dataset.model_copy(update={"digest": "other"})})
    assert choose_recipe(waiting, dataset, CPU, other)[0] == recipe
    by_hand = same.model_copy(update={"recipe": same.recipe.changed(name="quick")})
    assert choose_recipe(waiting, dataset, CPU, by_hand)[0] == recipe
