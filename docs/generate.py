"""Writes the pages that follow from the code: the fields of a recipe, the errors, the events, and the drawing of the layers.

    python docs/generate.py        # or: make docs

``tests/test_docs.py`` fails where a page is older than the code that it follows from.
"""

from __future__ import annotations

import ast
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "stagewright"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from layers import LAYERS  # noqa: E402

from stagewright.recipe import augment_fields, recipe  # noqa: E402
from stagewright.recipe.holds import conditions  # noqa: E402

MADE = "This page is made by `make docs` from the code; change the docstrings there."
PARTS = ("recipe/recipe.py", "recipe/fields.py", "recipe/augment_fields.py")
WHERE = {
    "Recipe": "The recipe itself",
    "Stage": "A stage",
    "Data": "`data`",
    "Model": "`model`",
    "Optimizer": "`optimizer`",
    "LR": "`lr`",
    "Mix": "`mix`",
    "Augment": "`augment`",
    "AugmentFields": "`augment`: what happens to single images",
    "Average": "`average`",
    "Evaluation": "`eval`",
    "Checkpoints": "`checkpoints`",
    "Stop": "`stop`",
    "Guard": "`guard`",
}
EXITS = {
    "RankLost": "69",
    "MirrorError": "69",
    "Stopped": "75",
    "Cancelled": "130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; 75 from `data pack` and `train --folds`",
    "Interrupted": "none: it stays within a run",
}


def classes(path: Path) -> list[ast.ClassDef]:
    """The public classes of a file, in its order."""
    body = ast.parse(path.read_text()).body
    return [node for node in body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def fields(node: ast.ClassDef) -> list[tuple[str, ast.AnnAssign, str]]:
    """(name, definition, docstring) of the annotated fields of a class, in its order."""
    found = []
    for at, field in enumerate(node.body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        after = node.body[at + 1] if at + 1 < len(node.body) else None
        said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        found.append((field.target.id, field, one_line(str(after.value.value)) if said else ""))  # type: ignore[union-attr]
    return found


def one_line(text: str) -> str:
    """``text`` for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


NAMES = {
    "float": "number",
    "int": "whole number",
    "str": "text",
    "bool": "true or false",
    "Duration": "length",
    "Size": "whole number, 4 to 4096",
    "Batch": "whole number, at least 1",
    "Fraction": "number, 0 to 1",
    "Share": "number, 0 to 1",
    "Positive": "number, above 0",
    "Spread": "number, at least 0",
    "Interpolation": "`bilinear` or `bicubic`",
    "Options": "mapping, handed on as it is",
    "Any": "anything",
    "None": "none",
    "Name": "text",
    "FunctionName": "`python:module:function`",
    "TableText": "text or none",
    "LabelText": "text, or a pattern with `(?P<label>...)`, or none",
    "GroupText": "text, or a pattern with `(?P<group>...)`, or none",
    "DisplayNames": "mapping of text to text",
}
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below", "min_length": "length at least"}
UNITS = {"epochs": "ep", "steps": "st", "images": "img", "run": ""}


def values(node: ast.expr) -> str:
    """An annotation in words: which values a field takes."""
    if isinstance(node, ast.Constant):
        return "none" if node.value is None else f"`{node.value}`"
    if isinstance(node, ast.Name):
        return NAMES.get(node.id, WHERE.get(node.id, f"`{node.id}`"))
    if isinstance(node, ast.BinOp):
        return f"{values(node.left)} or {values(node.right)}"
    if not isinstance(node, ast.Subscript):
        return ast.unparse(node)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    kind = ast.unparse(node.value)
    if kind == "Literal":
        return " or ".join(f"`{ast.literal_eval(one)}`" for one in inner)
    if kind == "Annotated":
        calls = [one for one in inner[1:] if isinstance(one, ast.Call) and ast.unparse(one.func) == "Field"]
        bounds = [
            f"{BOUNDS[word.arg]} {ast.unparse(word.value)}"
            for call in calls
            for word in call.keywords
            if word.arg in BOUNDS
        ]
        return ", ".join([values(inner[0]), *bounds])
    if kind in ("dict", "Mapping"):
        return f"mapping of {values(inner[0])} to {values(inner[1])}"
    return f"list of {values(inner[0])}" if kind in ("tuple", "list") else ast.unparse(node)


def where_it_holds(part: str, name: str) -> str:
    """The condition under which the field ``name`` of the class ``part`` has an effect; empty if it always has one."""
    home = augment_fields if part == "AugmentFields" else recipe
    return " or ".join(one.words() for one in conditions(getattr(home, part), name))


def default(node: ast.expr | None) -> str:
    """A default as YAML would have it."""
    if node is None:
        return "must be given"
    if isinstance(node, ast.Call):
        if ast.unparse(node.func) == "Duration":
            number, unit = (ast.literal_eval(one) for one in node.args)
            return f"`{number:g}{UNITS[unit]}`"
        if ast.unparse(node) == "Field(default_factory=dict)":
            return "empty"
        return "its own" if not node.args and not node.keywords else f"`{ast.unparse(node)}`"
    if isinstance(node, ast.Constant):
        if node.value in (None, ""):
            return "none" if node.value is None else "empty"
        return f"`{str(node.value).lower() if isinstance(node.value, bool) else node.value}`"
    return "one stage of defaults" if ast.unparse(node) == "(Stage(),)" else f"`{ast.unparse(node)}`"


def recipe_page() -> str:
    """Every field of a recipe: name, values, default, meaning."""
    lines = [
        "# Fields of a recipe",
        "",
        MADE,
        "",
        "[Recipes and stages](recipes.md) explains how they act together.",
        "",
    ]
    lines += [
        "A field that you set where it does not hold is an error, with `--set`, a flag or a key of your own recipe."
    ]
    found = {node.name: node for name in PARTS for node in classes(PACKAGE / name)}
    for name, where in WHERE.items():
        node = found[name]
        said = one_line(ast.get_docstring(node) or "")
        found_fields = fields(node)
        holds = {name: where_it_holds(node.name, name) for name, _, _ in found_fields}
        names = ["field", "values", "default", *(["holds where"] if any(holds.values()) else []), "means"]
        lines += ["", f"## {where}", "", said, "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for name, field, means in found_fields:
            cells = [f"`{name}`", values(field.annotation), default(field.value)]
            cells += [holds[name]] if any(holds.values()) else []
            lines.append(f"| {' | '.join([*cells, means])} |")
    return "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every class of error, its exit code and what it means."""
    lines = ["# Errors and exit codes", "", MADE, ""]
    lines += ["Every error says what was given, what is allowed and what to do. From Python they are exceptions of"]
    lines += ["`stagewright.errors`; all but the last four are a `StagewrightError`.", ""]
    lines += ["| class | exit code | what it is |", "|---|---|---|"]
    for node in classes(PACKAGE / "errors.py"):
        said = one_line((ast.get_docstring(node) or "").split("\n\n")[0])
        lines.append(f"| `{node.name}` | {EXITS.get(node.name, '2')} | {said} |")
    lines += [
        "",
        "Further exit codes: 0 done; 1 a check that failed (`resume-check`, `why`), or a bug, with a traceback; 130 a second",
    ]
    lines += ["Ctrl-C in a training. `predict` ends with 2 if no image could be read, and with 0 if some could."]
    return "\n".join(lines) + "\n"


EVENTS_INTRODUCTION = """# Events

{made}

A run says what happens as events. `events.jsonl` has one JSON object a line, `{{"kind", "step", ..., "clock"}}`; lines are
added and never changed. `log.txt` and the terminal say the same in words. From Python an observer is told of each:

    import stagewright as sw
    from stagewright.rundir.event_kinds import Evaluated

    class Best:
        def see(self, event: sw.Event) -> None:
            if isinstance(event, Evaluated) and event.best:
                print(event.step, event.results[event.chosen].top1)

        def close(self) -> None: ...

    sw.train("photos/", observers=[Best()])

`stagewright.rundir.events.read_events` reads a file into the same classes. A line that is damaged, that lacks a field or has
one of another type, or that is of a kind which a later version added, is left out, and that is said.

- **Clock.** Fields of `clock` depend on the time or the machine; they are absent where they are not known, or false. All
  others are functions of the plan, and the same however often a run was interrupted.
- **Compared.** Kinds that are not compared depend on how often the run was interrupted. The others are the same, in the same
  order, in every run of a plan, once superseded events and clocks are left out.
- **Superseded.** An event of `resumed` or `rolled_back` at step k supersedes all events of later steps that stand before it:
  those updates are made again. A `rolled_back` with the number and step of an earlier one, whose process was killed before it
  had saved, supersedes that one and all since.
"""


def events_page() -> str:
    """Every kind of event: when it happens, its fields, and how it counts."""
    nodes = [*classes(PACKAGE / "rundir/event_kinds.py"), *classes(PACKAGE / "rundir/event_parts.py")]
    base = next(node for node in nodes if node.name == "Event")
    kinds = [node for node in nodes if [ast.unparse(one) for one in node.bases] == ["Event"]]
    flags = {node.name: class_values(base) | class_values(node) for node in kinds}
    lines = [
        EVENTS_INTRODUCTION.format(made=MADE),
        "| kind | class | in the file | compared | supersedes |",
        "|---|---|---|---|---|",
    ]
    for node in kinds:
        own = flags[node.name]
        words = [
            yes_or_no(own["in_file"]),
            yes_or_no(not own["by_process"] and own["in_file"]),
            yes_or_no(own["supersedes"]),
        ]
        lines.append(f"| [`{own['kind']}`](#{own['kind']}) | `{node.name}` | {' | '.join(words)} |")
    lines += event_table("Every event", base, fields(base))
    for node in kinds:
        lines += event_table(str(flags[node.name]["kind"]), node, fields(node))
    for node in nodes:
        if node not in kinds and node is not base:
            lines += event_table(f"Within events: {node.name}", node, fields(node))
    return "\n".join(lines) + "\n"


def event_table(title: str, node: ast.ClassDef, found: list[tuple[str, ast.AnnAssign, str]]) -> list[str]:
    """A section on a class: what it says, and its fields with those of the clock last."""
    lines = ["", f"## {title}", "", one_line(ast.get_docstring(node) or "")]
    rows = []
    for name, field, means in found:
        if ast.unparse(field.annotation).startswith("ClassVar"):
            continue
        clock = field.value is not None and "CLOCK" in ast.unparse(field.value)
        shown = "`at`, from Python `time`" if name == "time" else f"`{name}`"
        rows.append((clock, f"| {shown} | {'yes' if clock else ''} | {values(field.annotation)} | {means} |"))
    head = ["", "| field | clock | values | means |", "|---|---|---|---|"] if rows else []
    return [*lines, *head, *(row for _, row in sorted(rows, key=lambda one: one[0]))]


def class_values(node: ast.ClassDef) -> dict[str, object]:
    """The class variables of a class that are constants."""
    found: dict[str, object] = {}
    for one in node.body:
        target = (
            one.targets[0] if isinstance(one, ast.Assign) else one.target if isinstance(one, ast.AnnAssign) else None
        )
        if (
            isinstance(one, ast.Assign | ast.AnnAssign)
            and isinstance(target, ast.Name)
            and isinstance(one.value, ast.Constant)
        ):
            found[target.id] = one.value.value
    return found


def yes_or_no(value: object) -> str:
    """For a cell of a table."""
    return "yes" if value else "no"


def layers_svg() -> str:
    """The layers as boxes, the lowest at the bottom."""
    height, gap, width, left = 34, 10, 640, 20
    rows = [row for row in LAYERS if row != ["__main__"]]
    total = len(rows) * (height + gap) + gap
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 2 * left} {total}" font-family="sans-serif" '
        'font-size="14" role="img" aria-label="The layers of the package, the lowest at the bottom">',
        f'<rect width="{width + 2 * left}" height="{total}" fill="#fff"/>',
    ]
    for number, row in enumerate(rows):
        y = total - (number + 1) * (height + gap)
        rooms = sum(len(one) if isinstance(one, tuple) else 1 for one in row)
        each = (width - gap * (rooms - 1)) / rooms
        x = float(left)
        for one in row:
            names = one if isinstance(one, tuple) else (one,)
            group = len(names) * each + (len(names) - 1) * gap
            if len(names) > 1:
                out.append(
                    f'<rect x="{x - 4:.1f}" y="{y - 4}" width="{group + 8:.1f}" height="{height + 8}" rx="8" fill="#dbe7f3"/>'
                )
            for at, name in enumerate(names):
                at_x = x + at * (each + gap)
                out.append(
                    f'<rect x="{at_x:.1f}" y="{y}" width="{each:.1f}" height="{height}" rx="5" fill="#f4f7fa" stroke="#4a6785"/>'
                )
                out.append(
                    f'<text x="{at_x + each / 2:.1f}" y="{y + height / 2 + 5}" text-anchor="middle">{escape(name)}</text>'
                )
            x += group + gap
    return "\n".join([*out, "</svg>"]) + "\n"


PAGES = {
    "recipe-fields.md": recipe_page,
    "errors.md": errors_page,
    "events.md": events_page,
    "images/layers.svg": layers_svg,
}


def main() -> None:
    """Writes every page that has changed."""
    for name, make in PAGES.items():
        path = Path(__file__).parent / name
        text = make()
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
