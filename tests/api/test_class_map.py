"""--map: pairs, files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stagewright.api.class_map import read_class_map
from stagewright.errors import DataError


def test_pairs_and_files_are_one_map(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('theirs,ours\n"a,b",x=y\n\ntin,metal\n')
    (tmp_path / "b.tsv").write_text("old glass\tglass\n")
    (tmp_path / "c.json").write_text('{"junk": null, "can": "metal"}')
    given = ["glass=Glass,paper=Paper", tmp_path / "a.csv", str(tmp_path / "b.tsv"), str(tmp_path / "c.json")]
    assert read_class_map(given, ["noise"]) == {
        **{"glass": "Glass", "paper": "Paper", "a,b": "x=y", "tin": "metal"},
        **{"old glass": "glass", "junk": None, "can": "metal", "noise": None},
    }
    assert read_class_map(["a.csv=metal"]) == {"a.csv": "metal"}, "a name with an ending is no file"
    assert read_class_map(["a=b", "a=b"]) == {"a": "b"}


@pytest.mark.parametrize("text", ["glass", "=x", "x=", "a=b=c", "a=b,", "a=b,c", ""])
def test_a_wrong_pair_is_named(text: str) -> None:
    with pytest.raises(DataError) as error:
        read_class_map([text])
    assert "--map" in error.value.given and "THEIRS=OURS" in error.value.allowed and error.value.remedy


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("m.csv", b"a,b,c\n", "row 1 has 3 names instead of two"),
        ("m.csv", b"a,b\nc,\n", "row 2 has 1 names instead of two"),
        ("m.csv", b'"a,b\n', "unexpected end"),
        ("m.csv", b"\xff\xfe,x\n", "utf-8"),
        ("m.json", b"[1]", "not a JSON object"),
        ("m.json", b'{"a": 3}', "is '?3'?, not a name"),
        ("m.json", b'{"a": "b", "a": "c"}', "given twice"),
    ],
)
def test_a_wrong_file_is_said(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=what) as error:
        read_class_map([tmp_path / name])
    assert str(tmp_path / name) in error.value.given and "two columns" in error.value.allowed


def test_two_classes_for_one_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'a' is given twice"):
        read_class_map(["a=b", "a=c"])
    with pytest.raises(DataError, match="'a' is given twice"):
        read_class_map(["a=b"], ["a"])
    (tmp_path / "m.csv").write_text("a,b\na,c\n")
    with pytest.raises(DataError, match="'a' is given twice"):
        read_class_map([tmp_path / "m.csv"])
    with pytest.raises(DataError, match="there is no such file"):
        read_class_map([tmp_path / "none.csv"])
