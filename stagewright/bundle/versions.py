"""Versions of the libraries that a Bundle was saved with, and what has changed since."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib import metadata

_LIBRARIES = ("stagewright", "torch", "torchvision", "timm", "numpy", "pillow")


def library_versions() -> dict[str, str]:
    """The version of Python and of each library that answers may hang on, by name; ``unknown`` where none is installed."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # stagewright on a bare PYTHONPATH
            found[library] = "unknown"
    return found


def changed_since(then: Mapping[str, str]) -> str:
    """What differs from the versions ``then``, in brackets, as the end of a sentence; "" where nothing is known of then."""
    now = library_versions()
    differing = [f"{name} {old} then, {now[name]} now" for name, old in then.items() if now.get(name, old) != old]
    return f" ({'; '.join(differing)})" if differing else " (with the same versions of all libraries)" if then else ""
