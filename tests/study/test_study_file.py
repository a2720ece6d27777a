"""Study files: what they mean, and every refusal with what was given, what is allowed, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stagewright.errors import RecipeError
from stagewright.recipe import recipes
from stagewright.recipe.yaml_text import write_yaml
from stagewright.study import study_file
from stagewright.study.changes import refuse_changed
from stagewright.study.definition import Confirm, Equal, Rungs, Study, job_name, read_study, study_from_content

PLAIN: dict[str, Any] = {"data": "photos", "recipe": "cifar-resnet", "seeds": [0], "grid": {"lr.peak": [0.01, 0.1]}}
SEARCH: dict[str, Any] = {"space": {"lr.peak": {"log": [0.003, 0.3]}}, "trials": 9}


def written(folder: Path, **changes: Any) -> str:
    """A study file: PLAIN with ``changes``; None leaves a key out."""
    content = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    (folder / "sweep.yaml").write_text(write_yaml(content))
    return str(folder / "sweep.yaml")


def study(folder: Path, **changes: Any) -> Study:
    return read_study(written(folder, **changes))


def refused(folder: Path, **changes: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        study(folder, **changes)
    assert caught.value.given and caught.value.allowed and caught.value.remedy
    return str(caught.value)


def test_the_issue_example(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").write_text(
        "data: cifar10-jpeg/\nrecipe: cifar-resnet\nequal: {epochs: 10ep}   # or steps\nseeds: [0, 1, 2]\ngrid:\n"
        "  model.name: [cifar_resnet18, cifar_preact_resnet18]\n"
        "  optimizer: {sgd: {name: sgd, nesterov: true}, adam: {name: adam}}\n"
        "  lr.peak: [0.01, 0.03, 0.1]\n"
        "  transforms: {A: {augment.rotation: 15, augment.brightness: 0.2}, B: {augment.erasing: 0.5, augment.blur: 0.3}}\n"
        "confirm: {top: 3, seeds: 5}\n"
    )
    found = read_study(str(tmp_path / "whole.yaml"))
    assert (found.name, found.data, found.equal, found.seeds) == (
        "whole",
        "cifar10-jpeg/",
        Equal("epochs", "10ep"),
        (0, 1, 2),
    )
    assert len(found.variants) == 24 and found.search is None and found.confirm == Confirm(3, 5)
    first, last = found.variants[0], found.variants[-1]
    assert first.name == "cifar_resnet18-sgd-0.01-A" and last.name == "cifar_preact_resnet18-adam-0.1-B"
    assert job_name(first, 2) == "cifar_resnet18-sgd-0.01-A-s2"
    assert last.labels == {
        "model.name": "cifar_preact_resnet18",
        "optimizer": "adam",
        "lr.peak": "0.1",
        "transforms": "B",
    }
    assert last.overrides == (
        "model.name=cifar_preact_resnet18",
        "optimizer.name=adam",
        "lr.peak=0.1",
        "augment.erasing=0.5",
        "augment.blur=0.3",
    )
    recipe = found.request(last, 7).preliminary
    assert recipe.seed == 7 and str(recipe.epochs) == "10ep" and recipe.augment.blur == 0.3
    assert recipe.optimizer.name == "adam" and recipe.optimizer.weight_decay == 5e-4, "what a label leaves out stays"
    assert len(set(found.confirmation_seeds)) == 5 and not set(found.confirmation_seeds) & set(range(10**6))


@pytest.mark.parametrize("name", study_file.shipped())
def test_shipped_studies_are_valid_and_say_where_they_come_from(name: str) -> None:
    found = read_study(name, "photos")
    text = study_file.text(name)
    assert "# Source:" in text and "# Expect:" in text and found.description
    assert found.confirm is not None and found.data == "photos"


def test_project_c_is_whole() -> None:
    found = read_study("cifar-sweep", "photos")
    assert len(found.variants) == 24
    for variant in found.variants:
        recipe = found.request(variant, 0).preliminary
        assert recipe.augment.copies == 1 and recipe.mix.mixup and recipe.mix.cutmix and recipe.mix.cutmix_share == 0.5
        assert recipe.stop.patience and recipe.stop.metric == "val_loss"
    with pytest.raises(RecipeError, match="has no data"):
        read_study("cifar-sweep")


def test_project_d_says_where_weights_come_from() -> None:
    found = read_study("swin-finetune-vs-scratch", "photos")
    settings = set()
    for variant in found.variants:
        recipe = found.request(variant, 0).preliminary
        [stage] = recipe.resolved_stages()
        settings.add((recipe.model.name, recipe.model.weights, stage.train))
        assert (recipe.image_size, recipe.batch_size, stage.fit) == (224, 32, "updates")
    assert settings == {(m, w, t) for m in ("swin_t", "swin_s") for w in (None, "default") for t in ("head", "all")}
    widths = [
        one.request(v, 0).preliminary.model.options
        for one in [read_study("cifar-vit-vs-resnet", "p")]
        for v in one.variants
    ]
    assert [(each.get("depth"), each.get("heads"), each.get("width")) for each in widths] == [
        (None, None, None),
        (2, 2, 128),
        (4, 4, 256),
        (6, 8, 384),
        (8, 8, 512),
    ]


@pytest.mark.parametrize(
    "given, equal",
    [
        ({"epochs": 10}, Equal("epochs", "10ep")),
        ({"epochs": "2.5ep"}, Equal("epochs", "2.5ep")),
        ({"steps": 500}, Equal("steps", "500st")),
        ({"images": "50000img"}, Equal("images", "50000img")),
        ({"time": "20m"}, Equal("time", "20m")),
        ("as_given", Equal("as_given")),
    ],
)
def test_equal(tmp_path: Path, given: Any, equal: Equal) -> None:
    found = study(tmp_path, equal=given)
    assert found.equal == equal
    words = found.command(found.variants[0], 3, "out/x", threads=2)
    flags = {"time": ["--budget", equal.value], "as_given": []}.get(equal.kind, ["--epochs", equal.value])
    assert words[:5] == ["stagewright", "train", "photos", "--recipe", "cifar-resnet"]
    assert words[5:] == [
        *flags,
        "--set",
        "lr.peak=0.01",
        "--seed",
        "3",
        "--out",
        "out/x",
        "--threads",
        "2",
        "--hold-test",
    ]


def test_choosing_a_model_drops_the_options_of_the_recipe_s_own(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "name: own\nmodel: {name: vit, drop_path: 0.1, options: {patch: 4}}\noptimizer: {name: adamw, options: {eps: 1.0e-6}}\n"
    )
    base = str(tmp_path / "own.yaml")
    grid = {"model.name": ["vit", "cifar_resnet18"], "optimizer": {"same": {"momentum": 0.8}, "sgd": {"name": "sgd"}}}
    found = study(tmp_path, recipe=base, grid=grid)
    recipe = {one.name: found.request(one, 0).preliminary for one in found.variants}
    assert recipe["vit-same"].model.options == {"patch": 4} and recipe["vit-same"].model.drop_path == 0.1
    assert recipe["cifar_resnet18-same"].model.options == {} and recipe["cifar_resnet18-same"].model.drop_path is None
    assert recipe["vit-same"].optimizer.options == {"eps": 1e-6} and recipe["vit-sgd"].optimizer.options == {}
    flags = study(tmp_path, recipe=base, grid={"model.name": ["cifar_resnet18", "vit"]})
    by_flag = recipes.load(base)
    from stagewright.recipe.request import RecipeRequest

    assert flags.request(flags.variants[0], 0).preliminary == (
        RecipeRequest(base, {"model.name": "cifar_resnet18", "seed": 0}).preliminary
    )
    assert by_flag.model.options == {"patch": 4}


def test_short_forms_of_parts_set_what_they_name(tmp_path: Path) -> None:
    grid = {
        "average": ["none", "ema"],
        "lr": [0.01, 0.02],
        "stages": {"one": [{}], "two": [{"epochs": 0.5}, {"epochs": 0.5}]},
    }
    found = study(tmp_path, grid=grid)
    assert found.variants[2].overrides == ("stages=[{}]", "average.kind=none", "lr.peak=0.02")
    recipe = found.request(found.variants[2], 0).preliminary
    assert recipe.lr.schedule == "one_cycle" and recipe.lr.peak == 0.02 and recipe.average.half_life.value == 0.01


def test_a_run_s_directory_is_a_recipe(tmp_path: Path, small_run: Path) -> None:
    found = study(tmp_path, recipe=str(small_run), grid={"batch_size": [8, 16]})
    assert found.request(found.variants[0], 0).preliminary.model.options == {"width": 4}
    assert found.command(found.variants[0], 0, "x")[4] == str(small_run / "recipe.yaml")


def test_a_search_keeps_every_bit(tmp_path: Path) -> None:
    space = {
        "lr.peak": {"log": [0.003, 0.3]},
        "mix.mixup": {"range": [0, 0.4]},
        "batch_size": {"choice": [32, 64]},
        "guard.window": {"int": [8, 32]},
        "transforms": {"choice": {"A": {"augment.rotation": 15}, "B": {"augment.erasing": 0.5}}},
    }
    found = study(
        tmp_path, grid=None, search={"space": space, "trials": 40, "rungs": {"first": "10%", "eta": 3}}, seed=4
    )
    assert found.search is not None and found.search.rungs == Rungs(0.1, 3) and found.search.seed == 4
    assert found.variants == () and len(found.examples) == 1 + 2 + 2 + 1 + 1 + 1
    values = {"lr.peak": 0.1 + 0.2 - 0.15, "mix.mixup": 1 / 3, "batch_size": "64", "guard.window": 9, "transforms": "B"}
    one = found.at(values)
    assert one == found.at(dict(reversed(values.items()))) and one.name.startswith("0.15-0.333-64-9-B-")
    recipe = found.request(one, 0).preliminary
    assert recipe.lr.peak == values["lr.peak"] and recipe.mix.mixup == 1 / 3, "to the bit"
    assert (recipe.batch_size, recipe.guard.window, recipe.augment.erasing) == (64, 9, 0.5)
    assert found.at(values | {"lr.peak": 0.15}).name != one.name, "names differ where any bit does"
    for wrong in ({"lr.peak": 0.5}, {"guard.window": 8.5}, {"transforms": "C"}, {"more": 1}):
        with pytest.raises(ValueError):
            found.at(values | wrong)
    with pytest.raises(ValueError, match="is no search"):
        study(tmp_path).at({})


def test_a_study_reads_back_from_its_content(tmp_path: Path) -> None:
    for changes in ({}, {"grid": None, "variants": {1: {}, "b": {"lr.peak": 0.5}}}, {"grid": None, "search": SEARCH}):
        one = study(tmp_path, **changes)
        assert study_from_content("sweep", json.loads(json.dumps(one.content))) == one


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"gird": {}}, "gird: unknown key; did you mean 'grid'?"),
    "an unknown key inside": ({"confirm": {"top": 1, "seed": 5}}, "confirm.seed: unknown key; did you mean 'seeds'?"),
    "a recipe field at the top": ({"batch_size": 32}, "batch_size: a field of the recipe"),
    "a key one level too high": ({"trials": 40}, "this key belongs inside search"),
    "rungs without a search": ({"rungs": {"first": "10%"}}, "rungs without a search"),
    "an unknown field": ({"grid": {"lr.peek": [0.1, 0.2]}}, "lr.peek: unknown field; did you mean 'peak'?"),
    "an unknown first name": (
        {"grid": {"optimiser.name": ["sgd"]}},
        "'optimiser.name' is not a field of a recipe; did you mean 'optimizer.name'?",
    ),
    "an unknown field in a bundle": (
        {"grid": {"t": {"A": {"augmet.blur": 0.1}}}},
        "grid.t.A: 'augmet.blur' is not a field of a recipe; did you mean 'augment.blur'?",
    ),
    "a bundle without fields": ({"grid": {"transforms": {"A": 3}}}, "grid: 'transforms' is not a field of a recipe"),
    "an unknown field for all": (
        {"set": {"batchsize": 4}},
        "set: 'batchsize' is not a field of a recipe; did you mean 'batch_size'?",
    ),
    "a value of no recipe": ({"grid": {"lr.peak": [0.1, -1]}}, "variant 1"),
    "a value without effect": ({"grid": {"lr.div": [10], "lr": {"a": {"schedule": "cosine"}}}}, "lr.div has no effect"),
    "an empty grid": ({"grid": {}}, "grid is empty"),
    "a field without values": ({"grid": {"lr.peak": []}}, "grid.lr.peak has no values"),
    "one value in place of a list": ({"grid": {"lr.peak": 0.1}}, "write lr.peak: [0.1, ...], or put it into set"),
    "no variants": ({"grid": None, "variants": {}}, "variants is empty"),
    "a variant that is no mapping": ({"grid": None, "variants": {"a": 3}}, "variants.a is 3"),
    "no way": ({"grid": None}, "neither grid nor variants nor search"),
    "two ways": ({"variants": {"a": {}}}, "the study has grid and variants"),
    "all ways": ({"variants": {"a": {}}, "search": SEARCH}, "the study has grid and variants and search"),
    "missing seeds": ({"seeds": None}, "the study has no seeds"),
    "empty seeds": ({"seeds": []}, "seeds is empty"),
    "repeated seeds": ({"seeds": [0, 1, 0]}, "seeds: 0 given twice"),
    "seeds of the confirmation": ({"seeds": [1_000_000]}, "less than 1000000"),
    "a seed that is no number": ({"seeds": ["one"]}, "seeds.0: 'one'"),
    "one seed without a list": ({"seeds": 3}, "seeds: 3"),
    "the seed as a field": ({"grid": {"seed": [1, 2]}}, "seeds: [0, 1, 2] gives the seeds"),
    "the name as a field": ({"set": {"name": "x"}}, "set: name"),
    "too many to confirm": ({"confirm": {"top": 3, "seeds": 2}}, "confirm.top is 3, but the study has 2 variants"),
    "too many trials to confirm": (
        {"grid": None, "search": SEARCH, "confirm": {"top": 10, "seeds": 2}},
        "the study has 9 trials",
    ),
    "equal labels": ({"grid": {"model.weights": ["a/w.pth", "b/w.pth"]}}, "two values are labelled 'w.pth'"),
    "labels of one folder": ({"grid": {"lr.peak": {"a b": 0.1, "a/b": 0.2}}}, "both make the folder name"),
    "labels of one folder by case": ({"grid": {"lr.peak": {"low": 0.1, "LOW": 0.2}}}, "both make the folder name"),
    "labels that combine alike": (
        {"grid": {"lr.peak": {"a-b": 0.1, "a": 0.2}, "batch_size": {"c": 8, "b-c": 16}}},
        "both make the folder name 'a-b-c'",
    ),
    "a field set twice": (
        {"grid": {"lr.peak": [0.1, 0.2], "both": {"A": {"lr.peak": 1}}}},
        "both and lr.peak both set lr.peak",
    ),
    "a field set for all too": ({"set": {"lr.peak": 0.3}}, "lr.peak and set both set lr.peak"),
    "a metric no run logs": ({"metric": "macro_f1"}, "metric: macro_f1, which the runs of variant 0.01 do not log"),
    "an unknown metric": ({"metric": "top5"}, "metric: 'top5'"),
    "another test": ({"test": "some"}, "test: 'some'"),
    "two lengths": ({"equal": {"epochs": 3, "steps": 4}}, "equal has epochs and steps"),
    "no length": ({"equal": {}}, "equal has nothing"),
    "a length of 0": ({"equal": {"epochs": 0}}, "equal.epochs: 0"),
    "a length of another unit": ({"equal": {"steps": "3ep"}}, "equal.steps: '3ep'"),
    "a time that is none": ({"equal": {"time": "soon"}}, "equal.time: 'soon'"),
    "money for each run": ({"equal": {"time": "$3"}}, "equal.time: '$3'"),
    "an unequal length": (
        {"equal": {"epochs": 3}, "grid": {"epochs": ["3ep", "4ep"]}},
        "variant 4ep is 4ep long, but equal says 3ep for all",
    ),
    "an unequal stage": (
        {"equal": {"epochs": 3}, "set": {"stages": [{"epochs": "5ep"}]}},
        "is 5ep long, but equal says 3ep",
    ),
    "auto": ({"recipe": "auto"}, "recipe: auto, which depends on the machine"),
    "an unknown recipe": ({"recipe": "cifar-resnett"}, "did you mean 'cifar-resnet'?"),
    "no data": ({"data": None}, "the study sweep has no data"),
    "rungs at the end": (
        {"grid": None, "search": {**SEARCH, "rungs": {"first": "100%"}}},
        "search.rungs.first: '100%'",
    ),
    "an empty space": ({"grid": None, "search": {"space": {}, "trials": 3}}, "search.space"),
    "an unknown form": (
        {"grid": None, "search": {**SEARCH, "space": {"lr.peak": {"lg": [1, 2]}}}},
        "did you mean 'log'?",
    ),
    "ends that fall": (
        {"grid": None, "search": {**SEARCH, "space": {"lr.peak": {"range": [2, 1]}}}},
        "search.space.lr.peak: range 2,1",
    ),
    "log of 0": ({"grid": None, "search": {**SEARCH, "space": {"lr.peak": {"log": [0, 1]}}}}, "both above 0"),
    "numbers that are not whole": (
        {"grid": None, "search": {**SEARCH, "space": {"batch_size": {"int": [1.5, 3]}}}},
        "two whole numbers",
    ),
    "parts of a whole number": (
        {"grid": None, "search": {**SEARCH, "space": {"batch_size": {"range": [32, 64]}}}},
        "batch_size: 44.22",
    ),
    "an end of no recipe": (
        {"grid": None, "search": {**SEARCH, "space": {"mix.mixup": {"range": [-1, 1]}}}},
        "recipe: mix.mixup: -0.236",
    ),
    "no trials": ({"grid": None, "search": {**SEARCH, "trials": 0}}, "search.trials: 0"),
    "an unknown sampler": ({"grid": None, "search": {**SEARCH, "sampler": "grid"}}, "search.sampler: 'grid'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    changes, expected = REFUSED[case]
    assert expected in refused(tmp_path, **changes)


def test_what_is_no_study_file(tmp_path: Path) -> None:
    place = tmp_path / "s.yaml"
    for text, expected in (
        ("", "contains nothing"),
        ("- a", "contains a list"),
        ("seeds: [0]\nseeds: [1]", "line 2: the key 'seeds' is given again"),
        ("{", "is not valid YAML: line 1"),
    ):
        place.write_text(text)
        with pytest.raises(RecipeError, match=expected.replace("[", r"\[")):
            read_study(str(place))
    place.write_bytes(b"data: \xff")
    with pytest.raises(RecipeError, match="not UTF-8"):
        read_study(str(place))
    with pytest.raises(RecipeError, match="did you mean 'cifar-sweep'"):
        read_study("cifar-swep")
    with pytest.raises(RecipeError, match="no such file"):
        read_study("none/such.yaml")


def test_too_many_variants_are_counted_and_not_made(tmp_path: Path) -> None:
    grid = {f"bundle{at}": {str(one): {} for one in range(50)} for at in range(10)}
    assert "97,656,250,000,000,000 variants" in refused(tmp_path, grid=grid)


CHANGES: dict[str, tuple[dict[str, Any], str | None]] = {
    "nothing": ({}, None),
    "another description": ({"description": "new"}, None),
    "what is the default anyway": ({"equal": "as_given"}, None),
    "more seeds": ({"seeds": [2, 0, 1]}, None),
    "other seeds": ({"seeds": [1]}, "seeds[0] (0, now 1)"),
    "another value": ({"grid": {"lr.peak": [0.01, 0.2]}}, "grid.lr.peak[1] (0.1, now 0.2)"),
    "another recipe, and length": (
        {"recipe": "quick", "equal": {"epochs": 3}},
        "recipe (cifar-resnet, now quick), equal",
    ),
    "other data": ({"data": "others"}, "data (photos, now others)"),
    "a confirmation": ({"confirm": {"top": 1, "seeds": 3}}, "confirm"),
    "a set for all": ({"set": {"batch_size": 8}}, "set.batch_size (–, now 8)"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_changes_since_the_beginning(tmp_path: Path, case: str) -> None:
    changes, expected = CHANGES[case]
    old, new = study(tmp_path).content, study(tmp_path, **changes).content
    if expected is None:
        refuse_changed(old, new)
        return
    with pytest.raises(RecipeError, match="has changed since its beginning") as caught:
        refuse_changed(old, new)
    assert expected in str(caught.value)


def test_a_search_may_have_more_trials_and_keeps_its_first_seed(tmp_path: Path) -> None:
    def content(seeds: list[int], **changes: Any) -> Any:
        return study(tmp_path, grid=None, seeds=seeds, search={**SEARCH, **changes}).content

    refuse_changed(content([0]), content([0, 1], trials=20))
    for seeds, changes, named in (
        ([0], {"trials": 8}, "search.trials (9, now 8)"),
        ([1, 0], {}, "seeds (0, now 1, 0)"),
        ([0], {"sampler": "gp"}, "search.sampler (tpe, now gp)"),
    ):
        with pytest.raises(RecipeError) as caught:
            refuse_changed(content([0]), content(seeds, **changes))
        assert named in str(caught.value)
