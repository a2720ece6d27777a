"""Comparisons: which runs belong together, what is compared, what is refused, and what rows and sentences say."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from compared_runs import CLASSES, manifest_of, some_right, write_run

from stagewright.comparison.compared import Compared, compare, verdict_of
from stagewright.comparison.formats import comma_separated, markdown, plain
from stagewright.comparison.page import page
from stagewright.comparison.words import COLUMNS, cells, head_sentences
from stagewright.errors import CheckpointError, DataError, RecipeError
from stagewright.measures.seeds import Contrast, Seeds


def runs_of(root: Path, name: str, share: float, seeds: int = 3, pictures: int = 60, **more: object) -> list[Path]:
    recipe = {"lr": {"peak": len(name) / 100}, "model": {"name": name}}
    return [
        write_run(root / f"{name}-s{at}", at, some_right(share, 100 * len(name) + at, pictures), recipe=recipe, **more)  # pyright: ignore[reportArgumentType]
        for at in range(seeds)
    ]


def both(root: Path, **more: object) -> list[Path]:
    return [*runs_of(root, "good", 0.8, **more), *runs_of(root, "worse", 0.4, **more)]  # pyright: ignore[reportArgumentType]


def test_runs_that_differ_by_the_seed_are_one_row(tmp_path: Path) -> None:
    found = compare([*both(tmp_path)])
    assert [row.name for row in found.rows] == ["good", "worse"]
    assert [row.tested for row in found.rows] == [3, 3] and not found.single and found.pictures == 60
    right = [np.stack([some_right(share, seed + at) for at in range(3)]) for share, seed in ((0.8, 400), (0.4, 500))]
    wanted = Seeds(right)
    first, second = found.rows
    assert first.scored is not None and second.scored is not None and second.against is not None
    assert first.scored.percent == pytest.approx(100 * right[0].mean()) and first.against is None
    assert second.against.points == pytest.approx(100 * (right[1].mean() - right[0].mean()))
    assert second.against.low == pytest.approx(100 * wanted.contrast(1, 0).low)
    assert second.against.verdict == "worse" and first.ranks == (1, 1) and second.ranks == (2, 2)
    assert first.spread == pytest.approx(100 * np.std(right[0].mean(1), ddof=1))
    assert first.top5 == pytest.approx(100 * np.mean([(one | (np.arange(60) % 5 < 4)).mean() for one in right[0]]))
    assert first.val_top1 == pytest.approx(75.0) and first.parameters == 1234 and first.seconds == 60.0
    assert first.facts[0] == "32" and first.facts[1] == "crop 0.875" and first.facts[5] == "10"
    assert found.differing == () and found.unequal == ()


def test_the_first_run_given_is_the_first_row(tmp_path: Path) -> None:
    good, worse = both(tmp_path)[:3], sorted(tmp_path.glob("worse*"))
    found = compare([*worse, *good])
    assert [row.name for row in found.rows] == ["worse", "good"]
    assert found.rows[1].against is not None and found.rows[1].against.verdict == "better"


def test_single_runs_are_models(tmp_path: Path) -> None:
    found = compare([runs_of(tmp_path, "good", 0.8, 1)[0], runs_of(tmp_path, "worse", 0.4, 1)[0]])
    assert found.single and "not the recipes" in head_sentences(found)[0]
    assert found.rows[0].spread is None and found.rows[1].against is not None and found.rows[1].against.smallest is None


def test_one_seed_beside_several_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one seed of worse") as caught:
        compare([*runs_of(tmp_path, "good", 0.8), *runs_of(tmp_path, "worse", 0.4, 1)])
    assert "train the other seeds" in caught.value.remedy


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    one = runs_of(tmp_path / "a", "good", 0.8, 2)
    two = runs_of(tmp_path / "b", "good", 0.8, 1)
    with pytest.raises(CheckpointError, match="the same seed 0"):
        compare([*one, *two])


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    every = both(tmp_path)
    assert [row.tested for row in compare([*every, every[0]]).rows] == [3, 3]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"relabelled": [0, 3]}, "2 pictures with another class"),
        (
            {"contents": [f"{part}{at}" for part, n in (("a", 30), ("b", 20), ("c", 60)) for at in range(n)]},
            "60 pictures only in",
        ),
        ({"classes": (*CLASSES[:5], "yak")}, "1 class only in other-s0 (yak)"),
    ],
)
def test_other_pictures_labels_and_classes_are_refused_with_counts(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    other = manifest_of(60, **change)  # pyright: ignore[reportArgumentType]
    every = [*runs_of(tmp_path, "good", 0.8, 2), *runs_of(tmp_path, "other", 0.8, 2, manifest=other)]
    with pytest.raises(DataError) as caught:
        compare(every)
    assert "good" in caught.value.given and "other" in caught.value.given
    assert said.replace("other-s0", "other") in caught.value.given.replace("other-s0", "other")
    assert other.digest[:12] in caught.value.given


def test_the_same_pictures_in_other_folders_and_order_are_the_same(tmp_path: Path) -> None:
    moved = manifest_of(60, prefix="z/")
    order = np.concatenate([np.arange(50), 50 + np.random.default_rng(0).permutation(60)])
    shuffled = moved.taken(order)
    right = some_right(0.7, 1)
    mine = [write_run(tmp_path / f"a-s{at}", at, some_right(0.7, at + 1), recipe={"a": 1}) for at in range(2)]
    theirs = [
        write_run(
            tmp_path / f"b-s{at}", at, some_right(0.7, at + 1)[order[50:] - 50], recipe={"a": 2}, manifest=shuffled
        )
        for at in range(2)
    ]
    found = compare([*mine, *theirs])
    assert found.rows[1].against is not None and found.rows[1].against.points == 0.0
    assert found.rows[1].ranks == (1, 2) and right.shape == (60,)
    assert found.rows[1].against.high == pytest.approx(-found.rows[1].against.low)


def test_unreadable_pictures_of_one_run_leave_all(tmp_path: Path) -> None:
    every = [*runs_of(tmp_path, "good", 0.8, 2), *runs_of(tmp_path, "worse", 0.4, 2, unreadable=[0, 7])]
    found = compare(every)
    assert found.pictures == 58 and any("2 pictures that a run could not read" in note for note in found.notes)
    kept = np.delete(np.arange(60), [0, 7])
    wanted = np.mean([some_right(0.8, 400 + at)[kept].mean() for at in range(2)])
    assert found.rows[0].scored is not None and found.rows[0].scored.percent == pytest.approx(100 * wanted)


def test_runs_that_chose_weights_on_the_pictures_are_refused_by_name(tmp_path: Path) -> None:
    seen = manifest_of(60, val_from_test=20)
    leaking = write_run(tmp_path / "leaking", 0, some_right(0.9, 1), recipe={"a": 3}, manifest=seen)
    fair = write_run(tmp_path / "fair", 0, some_right(0.7, 1), recipe={"a": 4})
    with pytest.raises(DataError, match="leaking chose its weights on 20 of the 60 pictures"):
        compare([fair, leaking])
    untested = write_run(tmp_path / "untested", 0, None, recipe={"a": 5}, manifest=seen)
    with pytest.raises(DataError, match="untested chose its weights on 20"):
        compare([fair, untested])
    again = write_run(tmp_path / "again", 0, some_right(0.6, 1), recipe={"a": 6}, manifest=seen)
    assert compare([leaking, again]).pictures == 60  # identical pictures that all of them have seen are the data set's


def test_answers_that_are_not_to_the_run_s_pictures_are_refused(tmp_path: Path) -> None:
    one, two = runs_of(tmp_path, "good", 0.8, 1)[0], runs_of(tmp_path, "worse", 0.4, 1)[0]
    manifest_of(60, prefix="q/").write(two / "manifest.parquet")
    with pytest.raises(DataError, match="are not to the test pictures of that run"):
        compare([one, two])


def test_failed_and_unfinished_runs_are_rows(tmp_path: Path) -> None:
    every = both(tmp_path)
    lost = write_run(
        tmp_path / "lost", 0, None, recipe={"model": {"name": "lost"}}, status="failed", error="it diverged"
    )
    half = write_run(tmp_path / "half", 0, None, recipe={"model": {"name": "half"}}, status="stopped")
    found = compare([*every, lost, half])
    assert [(row.name, row.status) for row in found.rows[2:]] == [("lost", "failed: it diverged"), ("half", "stopped")]
    assert found.rows[2].scored is None and found.rows[2].ranks is None and found.rows[2].val_top1 is not None
    assert found.rows[0].ranks == (1, 1)


def test_without_any_open_test_part_only_validation_is_shown(tmp_path: Path) -> None:
    every = [write_run(tmp_path / name, 0, None, recipe={"name": name, "model": {"name": name}}) for name in "ab"]
    found = compare(every)
    assert found.pictures == 0 and head_sentences(found)[0].startswith("No test part is open yet")
    assert all(row.scored is None and row.against is None for row in found.rows)


def test_what_differs_is_marked_and_not_refused(tmp_path: Path) -> None:
    good = runs_of(tmp_path, "good", 0.8, 2)
    other = runs_of(tmp_path, "other", 0.8, 2, steps=200, env={"torch": "2.11.0", "device_name": "H200"})
    found = compare([*good, *other])
    assert set(found.unequal) == {"hardware", "versions", "epochs", "updates"}
    assert any("Rows differ in hardware" in line for line in head_sentences(found))
    assert re.search(r'<td class="bad">.*2\.11\.0', page(found, tmp_path / "x.html"))


def test_groups_are_the_units(tmp_path: Path) -> None:
    manifest = manifest_of(60, groups=6)
    found = compare(both(tmp_path, manifest=manifest))
    assert found.groups == 6 and "60 test pictures of 6 groups" in head_sentences(found)[0]
    plain_units = compare(both(tmp_path / "plain"))
    assert found.rows[0].scored is not None and plain_units.rows[0].scored is not None
    assert found.rows[0].scored.low != plain_units.rows[0].scored.low


def test_one_group_alone_says_nothing_of_others(tmp_path: Path) -> None:
    found = compare(both(tmp_path, manifest=manifest_of(60, groups=1)))
    assert found.groups is None and any("nothing of other groups" in note for note in found.notes)


def test_verdicts() -> None:
    def of(low: float, high: float, differs: bool) -> str:
        return verdict_of(Contrast((low + high) / 2, low, high, 0.5, 0.5, differs, 0.1), 0.01)

    assert of(0.02, 0.04, True) == "better" and of(-0.04, -0.02, True) == "worse"
    assert of(-0.009, 0.009, False) == "equal within" and of(-0.02, 0.005, False) == "not told apart"
    assert of(0.001, 0.009, False) == "equal within"


def test_what_is_not_told_apart_says_what_would_be_seen(tmp_path: Path) -> None:
    found = compare([*runs_of(tmp_path, "good", 0.8), *runs_of(tmp_path, "close", 0.78)], margin=2)
    own = found.rows[1].against
    assert own is not None and own.verdict == "not told apart" and own.smallest is not None and own.smallest > 2
    text = cells(found, found.rows[1])[COLUMNS.index("verdict")]
    said = re.fullmatch(r"not told apart: 80 % of such studies would see \d+\.\d points; (.*)", text)
    assert said and re.fullmatch(r"about [\d,]+ seeds would see 2|to see 2 takes more pictures", said[1])


def test_level_and_margin_are_checked(tmp_path: Path) -> None:
    every = both(tmp_path)
    narrow, wide = compare(every, level=80), compare(every, level=99)
    assert narrow.rows[0].scored is not None and wide.rows[0].scored is not None
    assert wide.rows[0].scored.low < narrow.rows[0].scored.low
    for wrong in ({"level": 40.0}, {"level": 100.0}, {"margin": 0.0}, {"margin": float("nan")}):
        with pytest.raises(RecipeError):
            compare(every, **wrong)


def test_places_are_checked(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="alone"):
        compare([runs_of(tmp_path, "good", 0.8, 1)[0]])
    with pytest.raises(CheckpointError, match="nothing to compare"):
        compare([])
    with pytest.raises(CheckpointError, match="no such directory"):
        compare([tmp_path / "none", tmp_path / "good-s0"])


@pytest.fixture
def found(tmp_path: Path) -> Compared:
    lost = write_run(
        tmp_path / "lo|st<b>", 0, None, recipe={"model": {"name": "=lost"}}, status="failed", error="a|b\nc"
    )
    return compare([*both(tmp_path), lost])


def test_markdown_csv_and_json_say_the_same(found: Compared) -> None:
    lines = [line for line in markdown(found).splitlines() if line.startswith("|")]
    assert len(lines) == 5 and len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
    rows = list(csv.DictReader(io.StringIO(comma_separated(found))))
    whole = json.loads(json.dumps(plain(found)))
    assert [row["variant"] for row in rows] == ["good", "worse", "lo|st<b>"]
    for row, other in zip(rows, whole["rows"], strict=True):
        assert row["test_top1"] == ("" if other["test_top1"] is None else repr(other["test_top1"]))
        assert row["verdict"] == (other["verdict"] or "")
    assert whole["rows"][0]["runs"][2]["seed"] == 2 and whole["sentences"] == head_sentences(found)


def test_the_page_is_one_file_that_escapes_and_sorts(found: Compared, tmp_path: Path) -> None:
    html = page(found, tmp_path / "compare.html")
    assert "lo|st&lt;b&gt;" in html and "lo|st<b>" not in html
    assert html.count('<table class="sorts">') == 2 and 'data-v="worse"' in html and "<svg" in html
    assert not re.search(r'(src|href)="https?:', html)
