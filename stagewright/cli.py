"""The command line: parse, call, exit code. Imports of torch stand below the functions, so that ``--help`` is instant.

Exit codes: 0 done; 1 an error of stagewright itself; 2 something to mend (the message says what); 75 stopped on request
with the state saved (``stagewright resume`` goes on).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stagewright.datacli import data_app

app = typer.Typer(
    name="stagewright",
    help="Trains image classifiers in stages: planned before it runs, exactly resumable, honest about what came out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Data = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders; a folder with train/ val/ [test/]; a CSV or Parquet file; digits; torchvision:NAME."
    ),
]
RunPath = Annotated[Path, typer.Argument(help="A run directory, e.g. runs/quick-1.")]
RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a recipe field, e.g. optimizer.weight_decay=0.05 or stages.0.epochs=3ep; repeatable."
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Any torchvision or timm model, cifar_resnet18, cifar_preact_resnet18, vit.")
]
Weights = Annotated[str | None, typer.Option(help="default (the library's), a weights file, a run directory, or none.")]
Epochs = Annotated[str | None, typer.Option(help="Length of the run: 30 or 30ep, 500st; stages keep their shares.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", "-b", help="Pictures per update, over all devices.")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")]
ImgSize = Annotated[int | None, typer.Option("--img-size", help="Side of the pictures in pixels.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", "-j", min=0, help="Threads that read pictures; 0: between the steps; absent: by cores and size."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")]
NoPages = Annotated[bool, typer.Option("--no-pages", help="No plots and report while the run lives.")]
SaveMinutes = Annotated[float, typer.Option(help="Save at least this often, beside the plan's checkpoints.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]


@app.command()
def train(
    data: Data,
    recipe: RecipeName = "quick",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory; runs/RECIPE-N if absent. Never an existing run's.")
    ] = None,
    resume: Annotated[str, typer.Option(help="auto: go on if --out holds this very run.")] = "never",
    save_minutes: SaveMinutes = 10.0,
    quiet: Quiet = False,
    no_pages: NoPages = False,
) -> None:
    """Plan, train, evaluate and report."""
    from stagewright import training
    from stagewright.errors import RecipeError
    from stagewright.session import Execution

    if resume not in ("auto", "never"):
        raise RecipeError(f"--resume {resume}", "auto or never", "stagewright resume RUN goes on with a given run")
    if resume == "auto" and out is None:
        raise RecipeError("--resume auto without --out", "--out DIR, the run to go on with", "name the directory")
    chosen = _recipe(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed)
    execution = Execution(device=device, workers=workers, save_minutes=save_minutes, pages=not no_pages, quiet=quiet)
    run = training.train(data, chosen, out=out, resume=resume == "auto", execution=execution, say=_say(quiet))
    _close(run, quiet)


@app.command()
def resume(
    run: RunPath,
    overrides: Overrides = None,
    device: Device = "auto",
    workers: Workers = None,
    save_minutes: SaveMinutes = 10.0,
    quiet: Quiet = False,
    no_pages: NoPages = False,
) -> None:
    """Go on with a stopped or killed run; with --set, fork it."""
    from stagewright import training
    from stagewright.session import Execution

    execution = Execution(device=device, workers=workers, save_minutes=save_minutes, pages=not no_pages, quiet=quiet)
    done = training.resume(run, overrides=overrides or (), execution=execution, say=_say(quiet))
    _close(done, quiet)


@app.command()
def plan(
    data: Data,
    recipe: RecipeName = "quick",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    device: Device = "auto",
    as_json: AsJson = False,
    steps: Annotated[bool, typer.Option("--steps", help="With --json: every step's hyper-parameters too.")] = False,
) -> None:
    """Print what would happen, and exit."""
    from rich.console import Console

    from stagewright.planview import plan_view
    from stagewright.session import Execution
    from stagewright.training import prepare

    chosen = _recipe(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed)
    _, made = prepare(data, chosen, Execution(device=device, quiet=as_json), _say(as_json))
    if as_json:
        content = made.to_json()
        print(json.dumps({**content, "hyper": list(made.steps())} if steps else content, indent=1))
    else:
        Console().print(plan_view(made))


@app.command()
def evaluate(
    run: RunPath,
    data: Annotated[str | None, typer.Argument(help="Other pictures, as DATA of train; absent: the run's own.")] = None,
    split: Annotated[str, typer.Option(help="val or test of the run's own pictures; all of DATA.")] = "test",
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained model on its own validation or test pictures, or on other ones."""
    from stagewright.judge import judge

    result = judge(run, data, split=split, device=device, workers=workers)
    print(json.dumps(result.plain(), indent=1)) if as_json else result.print()


@app.command()
def predict(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(help="Picture files, folders, globs.")],
    top: Annotated[int, typer.Option("--top", "-k", help="Classes per picture.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file.")] = None,
    device: Device = "auto",
    batch_size: BatchSize = 32,
    as_json: AsJson = False,
) -> None:
    """Name what is in pictures."""
    from stagewright.build import choose_device
    from stagewright.model.bundle import load_bundle
    from stagewright.predict import expand_inputs, print_table, to_json, write_csv

    paths = expand_inputs(images)
    bundle = load_bundle(run, device=str(choose_device(device)))
    predictions = list(bundle.predict(paths, batch_size=batch_size or 32, topk=top))
    if csv is not None:
        write_csv(predictions, csv)
    if as_json:
        print(to_json(predictions))
    elif csv is None:
        print_table(predictions)


@app.command()
def report(runs: Annotated[list[Path], typer.Argument(help="Run directories.")]) -> None:
    """Write plots and report.html anew from a run's files."""
    from stagewright.report.__main__ import write

    for run in runs:
        print(write(run))


recipes_app = typer.Typer(
    help="List the shipped recipes, or show one.", rich_markup_mode=None, invoke_without_command=True
)
app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")


@recipes_app.callback()
def recipes_list(context: typer.Context) -> None:
    """List the shipped recipes."""
    if context.invoked_subcommand is None:
        from stagewright import recipes

        names = recipes.shipped()
        for name in names:
            print(f"{name:<{max(map(len, names))}}  {recipes.load(name).description}")


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="A recipe's name or file.")]) -> None:
    """Print a recipe's YAML with its source and expectations."""
    from stagewright import recipes

    recipes.load(name)  # what is shown is valid
    print(recipes.text(name), end="")


@app.command()
def models(pattern: Annotated[str, typer.Argument(help="Part of a name.")] = "") -> None:
    """List the models there are."""
    from stagewright.model.zoo import list_models

    for name, library in list_models(pattern):
        print(f"{name:<48} {library}")


@app.command("resume-check")
def resume_check(
    data: Data,
    recipe: RecipeName = "quick",
    overrides: Overrides = None,
    model: Model = None,
    steps: Annotated[int, typer.Option(help="Length of the rehearsal, shared by the recipe's stages.")] = 24,
    kills: Annotated[int, typer.Option(help="Random steps at which it is killed.")] = 3,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
) -> None:
    """Fire drill: kill a real run at random steps, in evaluation and at a stage change, and compare bits."""
    from stagewright.resume_check import check

    chosen = _recipe(recipe, overrides, model, None, None, None, None, None, seed)
    if not check(data, chosen, steps=steps, kills=kills, device=device, workers=workers, say=print):
        raise typer.Exit(1)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine offers, whether the native decoder is active, and what it costs where it is not."""
    from stagewright.doctor import examine, plain, print_checks

    checks = examine()
    print(json.dumps(plain(checks), indent=1)) if as_json else print_checks(checks)


@app.command()
def demo(
    data: Annotated[str, typer.Argument(help="DATA of train; digits are built in.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="Run directory; runs/demo-N if absent.")] = None,
) -> None:
    """Train a small network in a minute, evaluate it, and predict a few pictures."""
    from stagewright.demo import run_demo

    run_demo(data, out)


def _recipe(
    name: str,
    overrides: list[str] | None,
    model: str | None,
    weights: str | None,
    epochs: str | None,
    batch_size: int | None,
    lr: float | None,
    img_size: int | None,
    seed: int | None,
) -> Any:
    """The recipe with the common flags applied, then ``--set``, which has the last word."""
    from stagewright import recipes
    from stagewright.errors import RecipeError

    flags: dict[str, Any] = {
        "model.name": model,
        "model.weights": weights,
        "batch_size": batch_size,
        "lr.peak": lr,
        "image_size": img_size,
        "seed": seed,
    }
    recipe = recipes.load(name)
    if model is not None and model != recipe.model.name:
        flags = {"model.options": {}, "model.drop_path": None, **flags}  # they were meant for the recipe's own model
    for field in ("batch_size", "image_size"):
        own = [stage.name or str(at) for at, stage in enumerate(recipe.stages) if getattr(stage, field) is not None]
        if flags[field] is not None and own:
            raise RecipeError(
                f"--{'img-size' if field == 'image_size' else 'batch-size'} on recipe {name!r}, "
                f"whose stages {', '.join(own)} give their own",
                f"--set stages.{own[0]}.{field}={flags[field]} for each of them",
                "set the stages, or take a recipe of one size",
            )
    given = {field: value for field, value in flags.items() if value is not None or field == "model.drop_path"}
    recipe = recipes.override(recipe, [f"{field}={json.dumps(value)}" for field, value in given.items()])
    if epochs is not None:
        recipe = recipes.stretch(recipe, epochs)
    return recipes.override(recipe, overrides or [])


def _say(quiet: bool) -> Any:
    return (lambda text: None) if quiet else print


def _close(run: Any, quiet: bool) -> None:
    """The last lines of a run: what came out and what to type next; exit code 75 for one that was stopped."""
    from stagewright.stop import EXIT_STOPPED

    if not run.finished:
        print(f"Stopped and saved. Go on with:  stagewright resume {run.path}", file=sys.stderr)
        raise typer.Exit(EXIT_STOPPED)
    if quiet:
        return
    summary = run.summary
    scores = ", ".join(f"{split} {value:.2f} %" for split, value in summary["top1"].items() if value is not None)
    print(f"Top-1 {scores}  ({summary['chosen']['weights']} weights of step {summary['chosen']['step']:,})")
    print(f"Report   {run.path / 'report.html'}")
    print(f"Predict  stagewright predict {run.path} IMAGES...")


def main() -> None:
    """Entry point; turns stagewright's errors into messages and exit codes."""
    from stagewright.errors import StagewrightError, Stopped

    try:
        app()
    except StagewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stopped:
        from stagewright.stop import EXIT_STOPPED

        print(f"{stopped}; nothing was lost", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
