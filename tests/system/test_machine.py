"""What is read of the machine's processor."""

from __future__ import annotations

import pytest

from stagewright.system.machine import fast_bfloat16

_INTEL, _AMD = "vendor_id\t: GenuineIntel\n", "vendor_id\t: AuthenticAMD\n"


@pytest.mark.parametrize(
    ("processor", "fast"),
    [
        (_AMD + "flags\t\t: fpu avx512f avx512_bf16 sha\n", True),
        (_AMD + "flags\t\t: fpu avx2 avx512f\n", False),
        (_INTEL + "flags\t\t: fpu avx512f avx512_bf16\n", False),
        (_INTEL + "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile\n", True),
        ("", False),
    ],
)
def test_which_processors_are_faster_in_bfloat16(processor: str, fast: bool) -> None:
    assert fast_bfloat16(processor) is fast


def test_this_machine_gives_an_answer() -> None:
    assert fast_bfloat16() in (True, False)
