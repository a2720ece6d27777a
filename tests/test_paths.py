"""Names and paths: ``~`` at every door, what stands at a path that is written, inputs that are no files, names of runs."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn

from stagewright.bundle.bundle import load_bundle
from stagewright.bundle.inputs import expand_inputs
from stagewright.bundle.predict import answer
from stagewright.bundle.predictions import CsvWriter, Prediction
from stagewright.bundle.preprocessing import Preprocessing
from stagewright.data.dataset import load_dataset
from stagewright.data.inspect.inspect import inspect
from stagewright.data.inspect.page import write_page
from stagewright.data.pack.build import pack
from stagewright.data.sources.scan import scan
from stagewright.data.splits.write import split
from stagewright.errors import RecipeError, StagewrightError, StorageError
from stagewright.model.weights import load_weights
from stagewright.preflight.lr_find import RunArtifacts
from stagewright.recipe import recipes
from stagewright.recipe.recipe import Data, Recipe
from stagewright.report.write import write
from stagewright.storage import cache
from stagewright.storage.files import user_path, write_whole
from stagewright.storage.lines import LineWriter


def write_csv(path: str | Path) -> None:
    with LineWriter(path) as lines:
        CsvWriter(lines, 1).write(Prediction("a.jpg", (("ant", 0.75),)))


WHOLE = Data(val=0.2, test=0.2)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with pictures, a table, a recipe and weights in it; the current folder is another one."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    rows = ["path,label"]
    for name in ("ant", "bee"):
        (home / "pics" / name).mkdir(parents=True)
        for at in range(8):
            shade = (at * 20, 200 if name == "ant" else 20, at)
            Image.new("RGB", (9 + at, 9), shade).save(home / "pics" / name / f"{at}.png")
            rows.append(f"~/pics/{name}/{at}.png,{name}")
    (home / "table.csv").write_text("\n".join(rows))
    (home / "plain.csv").write_text("\n".join(rows).replace("~/pics/", ""))
    (home / "mine.yaml").write_text("{name: mine}")
    torch.save(nn.Linear(3, 2).state_dict(), home / "weights.pth")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    return home


def test_a_tilde_is_the_home_folder_at_every_door(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(load_dataset("~/pics", WHOLE).manifest) == 16
    assert len(load_dataset("~/table.csv", WHOLE).manifest) == 16  # its rows begin with ~ as well
    assert len(load_dataset("~/plain.csv", WHOLE.model_copy(update={"images": "~/pics"})).manifest) == 16
    assert expand_inputs(["~/pics/ant/0.png", "~/pics/bee/*.png", "~/pics/ant"]).paths[0] == home / "pics/ant/0.png"
    assert recipes.load("~/mine.yaml").name == "mine"
    assert load_weights(nn.Linear(3, 2), Path("~/weights.pth"), 2).loaded_parameters == 8
    for door in (load_bundle, write):
        with pytest.raises(StagewrightError, match=str(home / "nothing")):
            door("~/nothing")
    pack("~/pics", "~/made/pics.pack", WHOLE, size=8)
    assert len(load_dataset("~/made/pics.pack", WHOLE).manifest) == 16
    split("~/pics", WHOLE, out=Path("~/made/split.csv"), links=Path("~/made/links"))
    write_csv("~/made/answers.csv")
    write_page(inspect("~/pics", WHOLE), "~/made/page.html")
    monkeypatch.setenv("STAGEWRIGHT_CACHE", "~/made/cache")
    assert cache.cache_folder("scans") == home / "made/cache/scans"
    assert {path.name for path in (home / "made").iterdir()} == {
        *("pics.pack", "split.csv", "links", "answers.csv", "page.html")
    }
    assert os.listdir() == []  # above all no folder called ~


def test_names_that_begin_with_a_tilde_and_are_none_of_a_user(home: Path) -> None:
    Path("~draft.jpg").touch()
    assert user_path("~draft.jpg") == Path("~draft.jpg")
    with pytest.raises(StorageError, match="home"):
        user_path("~nobody-of-this-name/x")


@pytest.mark.parametrize(
    ("name", "told"), [("", "an empty path"), ("a\0b", "NUL"), ("x" * 256, "256 bytes"), ("x/" * 2100, "4,199 bytes")]
)
def test_what_no_file_can_be_called_is_said(name: str, told: str, tmp_path: Path) -> None:
    for door in (
        user_path,
        lambda text: load_dataset(text, WHOLE),
        lambda text: expand_inputs([text]),
        recipes.text,
    ):
        with pytest.raises(StorageError, match=told):
            door(name)


def a_page(path: Path) -> None:
    write_page(inspect(str(path.parent.parent / "pics"), WHOLE), path)


def a_split(path: Path) -> None:
    split(str(path.parent.parent / "pics"), WHOLE, out=path, overwrite=True)


WRITERS: list[Callable[[Path], object]] = [
    lambda path: write_csv(path),
    lambda path: RunArtifacts(files={path.name: b"lr,loss\n"}).write(path.parent),
    a_page,
    a_split,
]


@pytest.mark.parametrize("writer", WRITERS, ids=["predict", "lr-find", "inspect", "split"])
def test_what_stands_at_a_path_is_written_through_or_refused_and_never_replaced(
    writer: Callable[[Path], object], home: Path
) -> None:
    places = home / "places"
    places.mkdir()
    (places / "real.csv").write_text("old")
    (places / "link.csv").symlink_to("real.csv")
    writer(places / "link.csv")
    assert (places / "link.csv").is_symlink() and (places / "real.csv").read_text() != "old"

    os.mkfifo(places / "pipe.csv")
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.append((places / "pipe.csv").read_text()))
    reader.start()
    while not heard:  # until the reader has opened its end, there is none to write to
        try:
            writer(places / "pipe.csv")
            reader.join()
        except StorageError:
            time.sleep(0.01)
    assert heard[0][:15] == (places / "real.csv").read_text()[:15]  # further on a page says how long it took
    with pytest.raises(StorageError, match=r"pipe.csv cannot be written"):
        writer(places / "pipe.csv")
    assert stat.S_ISFIFO((places / "pipe.csv").lstat().st_mode)

    listening = socket.socket(socket.AF_UNIX)
    with listening:
        os.chdir(places)  # names of sockets are short
        listening.bind("socket.csv")
        with pytest.raises(StorageError, match=r"socket.csv cannot be written"):
            writer(places / "socket.csv")
        assert stat.S_ISSOCK((places / "socket.csv").lstat().st_mode)
    assert not list(places.glob(".*"))


def test_a_dash_and_dev_stdout_are_the_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for name in ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        print("before")
        write_csv(name)
        before, header, row = capfdbinary.readouterr().out.split(b"\n", 2)
        assert before == b"before" and header.startswith(b"path,class_1") and row.startswith(b"a.jpg,ant")
    assert not os.path.exists("-")


def test_a_log_that_dev_stdout_leads_to_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("earlier\n")
    code = "from stagewright.storage.files import write_whole; print('first'); write_whole('/dev/stdout', 'then\\n')"
    with (tmp_path / "log").open("ab") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "earlier\nfirst\nthen\n"
    write_whole("/dev/null", "gone")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


class Flat(nn.Module):
    """Answers the same for every picture."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(images), 2)


def test_inputs_that_are_no_files_are_refused_one_by_one(home: Path) -> None:
    os.mkfifo("fifo.png")
    with open("sparse.png", "wb") as sparse:
        sparse.truncate(3 << 40)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind("socket.png")
    strange = ["fifo.png", "/dev/zero", "/dev/urandom", "/proc/kmsg", "socket.png", "sparse.png", "/dev/null"]
    view = Preprocessing(8, 1.0, "crop", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    began = time.monotonic()
    with listening:
        answers = list(answer(Flat(), ("ant", "bee"), view, [*strange, home / "pics/ant/0.png"]))
    assert [one.error is None for one in answers] == [*(False for _ in strange), True]
    reasons = dict(zip(strange, (one.error or "" for one in answers), strict=False))
    assert "a pipe, not a regular file" in reasons["fifo.png"] and "a device" in reasons["/dev/zero"]
    assert "more than 1,024 MiB" in reasons["sparse.png"]
    assert time.monotonic() - began < 10


def test_a_pipe_of_the_shells_is_read_to_its_end(home: Path) -> None:
    view = Preprocessing(8, 1.0, "crop", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    out, into = os.pipe()
    os.write(into, (home / "pics/ant/0.png").read_bytes())
    os.close(into)
    (one,) = answer(Flat(), ("ant", "bee"), view, f"/dev/fd/{out}")
    os.close(out)
    assert one.error is None and one.classes[0][0] == "bee"


def test_a_scan_names_what_is_no_file_or_too_large(home: Path) -> None:
    os.mkfifo("fifo.png")
    os.symlink("/dev/zero", "endless.png")
    with open("sparse.png", "wb") as sparse:
        sparse.truncate(3 << 40)
    found = scan(os.getcwd(), pa.array(["endless.png", "fifo.png", "sparse.png"]))
    assert "a device" in found.reasons[0] and "a pipe" in found.reasons[1] and "1,024 MiB" in found.reasons[2]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/x", "a/b", "a\\b", "a\0b", "con\n", "\x1b[31m", "x" * 101, "é" * 101]
)
def test_a_recipes_name_is_a_folders_name(name: str) -> None:
    with pytest.raises(RecipeError, match=r"name: .*folder"):
        recipes.from_dict({"name": name})


@pytest.mark.parametrize("name", ["exp [lr 0.1]", "Größe 2", "a.b", "..a", "*", "x" * 100, "実験"])
def test_names_with_brackets_blanks_and_other_scripts_are_fine(name: str) -> None:
    assert Recipe(name=name).name == name


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As in ``docker run --user 54321``; returns where the cache falls back to."""
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("STAGEWRIGHT_CACHE")

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    cache.temporary_cache.cache_clear()
    return tmp_path / f"stagewright-cache-{os.getuid()}"


def test_a_user_without_a_home_has_a_private_cache(homeless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.cache_folder("scans") == homeless / "stagewright/scans"
    assert stat.S_IMODE(homeless.lstat().st_mode) == 0o700
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "")
        patch.delenv("XDG_CACHE_HOME")
        cache.give_libraries_a_cache()
        assert torch.hub.get_dir().startswith(str(homeless))
    cache.temporary_cache.cache_clear()
    assert cache.cache_folder() == homeless / "stagewright", "the next process finds it again"


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_cache_that_another_user_may_have_laid_out_is_not_used(
    homeless: Path, tmp_path: Path, trap: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    if trap == "link":
        homeless.symlink_to(tmp_path / "theirs")
    else:
        homeless.mkdir()
        homeless.chmod(0o777)
    folder = cache.temporary_cache()
    assert folder != homeless and stat.S_IMODE(folder.lstat().st_mode) == 0o700
    assert "STAGEWRIGHT_CACHE" in caplog.text
    assert not list((tmp_path / "theirs").iterdir())
