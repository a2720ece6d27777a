"""What the pages say is so: commands, links and recipes to copy, those of docs/systems above all."""

from __future__ import annotations

import importlib.util
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import typer

from stagewright.cli import main
from stagewright.cli.options import recipe_request
from stagewright.plan.plan import DatasetInfo, Measured
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {page.stem: page.read_text() for page in sorted((DOCS / "systems").glob("*.md"))}
SYSTEMS = "\n".join(PAGES.values())
FILES = dict(re.findall(r"(?ms)^```yaml\n# (\S+\.yaml)\n(.*?)^```$", SYSTEMS))
INFO = DatasetInfo(num_train=50_000, num_val=5_000, num_test=5_000, classes=("a", "b"), digest="x")


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recipes that a reader of docs/systems has copied."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands() -> list[str]:
    blocks = re.findall(r"(?m)(?:^    .*\n)+", SYSTEMS)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("stagewright train")]


@pytest.mark.parametrize("text", commands())
def test_commands_of_the_systems_make_plans(text: str, copied: Path) -> None:
    command = typer.main.get_command(main.app).get_command(None, "train")  # type: ignore[attr-defined]
    given = command.make_context("train", shlex.split(text)[2:]).params
    fields = ("recipe", "overrides", "model", "weights", "epochs", "batch_size", "lr", "img_size", "seed")
    recipe = recipe_request(*(given[field] for field in fields)).preliminary
    assert resolve(recipe, INFO, measured=Measured(lr=0.1)).total_steps > 0


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_to_copy_is_the_shipped_one_or_makes_a_plan(name: str, copied: Path) -> None:
    recipe = recipes.load(name)
    assert recipe.name == Path(name).stem
    if recipe.name in recipes.shipped():
        assert recipe == recipes.load(recipe.name)
    assert resolve(recipe, INFO).total_steps > 0


def test_every_system_has_its_command_and_every_recipe_there_is_shipped() -> None:
    assert len(PAGES) == 5 and all("stagewright train" in text and "```yaml" in text for text in PAGES.values())
    assert all(f"](systems/{name}.md)" in (DOCS / "systems.md").read_text() for name in PAGES)
    named = set(re.findall(r"(?:-r|--recipe) ([\w.-]+)", SYSTEMS)) - set(FILES)
    assert len(commands()) >= 12 and named <= set(recipes.shipped())
    assert {"camera-trap-swin", "imagenet-resnet50", "cifar-resnet", "standard", "progressive", "hybrid"} <= named


def test_every_link_leads_somewhere() -> None:
    """Also to the right heading, by the rules that code hosts have for its anchor."""
    wrong = []
    for page in written_pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if re.match(r"\w+:", target):
                continue
            if not file.exists() or (anchor and anchor not in anchors(file)):
                wrong.append(f"{page.relative_to(DOCS.parent)}: {target}")
    assert wrong == []


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def written_pages() -> list[Path]:
    return [*sorted(DOCS.rglob("*.md")), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md"))]


def test_the_table_of_recipes_is_complete() -> None:
    listed = re.findall(r"(?m)^\| `([\w-]+)` \|", (DOCS / "recipes.md").read_text().split("## The shipped recipes")[1])
    assert sorted(listed) == sorted([recipes.AUTO, *recipes.shipped()])


GENERATED = ["recipe-fields.md", "errors.md", "events.md", "images/layers.svg"]


@pytest.mark.parametrize("name", GENERATED)
def test_generated_pages_are_those_of_the_code(name: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert set(generate.PAGES) == set(GENERATED)
    assert (DOCS / name).read_text() == generate.PAGES[name](), "make docs writes it again"


def quoted_commands() -> list[tuple[str, str]]:
    """(page, command) of every ``stagewright ...`` in a code block or between backticks."""
    found = []
    for page in written_pages():
        text = page.read_text().replace("\\\n", " ")
        lines = re.findall(r"(?m)^(?:    |\$ )(stagewright .*)$", text)
        lines += re.findall(r"`(stagewright [^`\n]*)`", text)
        found += [(page.name, line) for line in lines if page.name != "log.md"]
    return found


def parse(text: str) -> None:
    """Parses as the command line would; its own error where that is refused."""
    words = shlex.split(text, comments=True)[1:]
    words = list(takewhile(lambda word: word not in ("|", ">"), words))
    command: Any = typer.main.get_command(main.app)
    context: Any = None
    while words and hasattr(command, "resolve_command"):
        context = command.context_class(command, parent=context, info_name=command.name)
        _, command, words = command.resolve_command(context, words)
    if not hasattr(command, "resolve_command"):
        command.make_context(command.name, words, parent=context)


def test_every_command_in_the_docs_is_one() -> None:
    wrong = []
    for page, command in quoted_commands():
        try:
            parse(command)
        except Exception as error:  # typer may bring a click of its own
            if type(error).__name__ != "Exit":  # of --help
                wrong.append(f"{page}: {command}: {error}")
    assert wrong == []
    assert len(quoted_commands()) > 50
    with pytest.raises(Exception, match="No such option"):
        parse("stagewright train photos/ --bugdet 45m")
