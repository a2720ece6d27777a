"""How large the buckets are in which gradients are exchanged. Without torch: a forecast needs it too."""

from __future__ import annotations

BUCKET_BYTES = 25 * 2**20
_FIRST_BYTES = 2**20
"""Between hosts the first bucket is small, as torch's DDP has it: its exchange begins early in the backward pass. Within a host
the fixed costs of another exchange are more than that."""


def first_bucket_bytes(bucket_bytes: int = BUCKET_BYTES, *, several_hosts: bool) -> int:
    """Returns at how many bytes the first bucket is closed, where the others are at ``bucket_bytes``."""
    return min(bucket_bytes, _FIRST_BYTES) if several_hosts else bucket_bytes
