"""Arguments: every command refuses what is empty, given twice or not a number, before it does anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import typed
from typer.core import TyperArgument, TyperOption

import stagewright as sw
from stagewright.cli import main
from stagewright.errors import StagewrightError
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Recipe


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, one in group.commands.items():
        yield from commands(one, (*path, name)) if hasattr(one, "commands") else [((*path, name), one)]


COMMANDS = dict(commands(typer.main.get_command(main.app)))
OPTIONS = [
    (path, max(option.opts, key=len))
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, TyperOption) and not option.is_flag
]


def needed(path: tuple[str, ...]) -> list[str]:
    return ["x" for one in COMMANDS[path].params if isinstance(one, TyperArgument) and one.required]


def test_all_commands_are_seen() -> None:
    assert len(COMMANDS) >= 16 and len(OPTIONS) >= 90


@pytest.mark.parametrize("blank", ["", *(pytest.param(one, marks=pytest.mark.long) for one in ("  ", "\t"))])
def test_empty_arguments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, blank: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, option in OPTIONS:
        for words in ([option, blank], [f"{option}={blank}"]):
            code, out, err = typed(capsys, monkeypatch, *path, *needed(path), *words)
            assert (code, out) == (2, "") and option in err and "is empty" in err, (path, words, err)
            assert err.count("allowed:") == err.count("to do:") == 1
    for path in COMMANDS:
        if any(isinstance(one, TyperArgument) for one in COMMANDS[path].params):
            code, out, err = typed(capsys, monkeypatch, *path, blank)
            assert (code, out) == (2, "") and "argument 1 is empty" in err, (path, err)
    assert list(tmp_path.iterdir()) == []


def test_options_given_twice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for path, option in OPTIONS:
        if next(one for one in COMMANDS[path].params if option in one.opts).multiple:
            continue
        code, out, err = typed(capsys, monkeypatch, *path, *needed(path), option, "1", f"{option}=2")
        assert (code, out) == (2, "") and f"{option} is given 2 times" in err, (path, err)
    twice = typed(capsys, monkeypatch, "plan", "nowhere", "--json", "--json", "--set", "seed=1", "--set", "seed=2")
    assert "there is no 'nowhere'" in twice[2]


def test_numbers_that_are_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tried = 0
    for path, option in OPTIONS:
        one = next(one for one in COMMANDS[path].params if option in one.opts)
        if "float" not in str(one.type_descriptor.annotation):
            continue
        for value in ("nan", "inf", "-inf", "1e999"):
            code, out, err = typed(capsys, monkeypatch, *path, *needed(path), f"{option}={value}")
            assert (code, out) == (2, "") and option in err and "Traceback" not in err, (path, option, value, err)
            tried += 1
    assert tried > 30


@pytest.mark.parametrize("option", ["--workers", "--threads"])
@pytest.mark.parametrize("value", ["-1", "1025", "9" * 40, "1.5", "many"])
def test_threads(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, value: str
) -> None:
    monkeypatch.chdir(tmp_path)
    having = [path for path, known in OPTIONS if known == option]
    assert len(having) >= (1 if option == "--threads" else 8)
    for path in having:
        code, out, err = typed(capsys, monkeypatch, *path, *needed(path), option, value)
        assert (code, out) == (2, "") and "Invalid value for '--" in err, (path, err)


@pytest.mark.parametrize("field", ["model.weights", "data.group", "data.path", "epochs", "seed", "model.name"])
@pytest.mark.parametrize("blank", ["", "  "])
def test_a_field_without_a_value_is_not_switched_off(field: str, blank: str) -> None:
    with pytest.raises(StagewrightError, match="has no value"):
        recipes.override(Recipe(), [f"{field}={blank}"])


@pytest.mark.parametrize("blank", ["", "  "])
def test_empty_paths_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: sw.train(blank, "quick"),
        lambda: sw.train("digits", blank),
        lambda: sw.train("digits", "quick", out=blank),
        lambda: sw.train("digits", "quick", model=blank),
        lambda: sw.train("digits", "quick", loss=blank),
        lambda: sw.train("digits", "quick", optimizer=blank),
        lambda: sw.make_plan(blank),
        lambda: sw.resume(blank),
        lambda: sw.evaluate(blank),
        lambda: sw.load_bundle(blank),
    ):
        with pytest.raises(StagewrightError) as error:
            call()
        assert error.value.given and error.value.allowed and error.value.remedy
    assert list(tmp_path.glob("runs/*")) == []


def test_too_many_threads_in_python() -> None:
    with pytest.raises(StagewrightError, match="workers 0 to 1,024"):
        sw.Execution(workers=10**9)
