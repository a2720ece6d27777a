"""Versions of the libraries with which a Bundle was saved, and their changes since."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

_LIBRARIES = ("stagewright", "torch", "torchvision", "timm", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the libraries that may affect predictions, by name; ``unknown`` if not installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # stagewright on a bare PYTHONPATH
            found[library] = "unknown"
    return found


def changed_since(then: Mapping[str, str]) -> str:
    """Returns the differences from the versions ``then``, in brackets, as the end of a sentence; empty if ``then`` is empty."""
    now = library_versions()
    differing = [f"{name} {old} then, {now[name]} now" for name, old in then.items() if now.get(name, old) != old]
    return f" ({'; '.join(differing)})" if differing else " (with the same versions of all libraries)" if then else ""
