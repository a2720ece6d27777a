from __future__ import annotations

from pathlib import Path

import pytest

from stagewright.data.sources.local import list_source
from stagewright.errors import DataError
from stagewright.recipe.recipe import Data


@pytest.mark.parametrize("field", ["path", "label", "group", "split", "images"])
def test_a_setting_for_columns_is_refused_where_there_are_none(picture_folder: Path, field: str) -> None:
    settings = Data.model_validate({field: "site"})
    for source, what in ((str(picture_folder), "a folder"), ("digits", "digits")):
        with pytest.raises(DataError) as error:
            list_source(source, settings)
        assert (
            f"data.{field}=site with" in error.value.given
            and f"which is {what} and has no columns" in error.value.given
        )


def test_no_groups_and_no_split_may_be_asked_of_anything(picture_folder: Path) -> None:
    assert len(list_source(str(picture_folder), Data(group="none", split="none")).paths) == 60
