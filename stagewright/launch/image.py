"""The container image of a job: a Dockerfile, and the versions that it installs."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

from stagewright.errors import StorageError
from stagewright.launch.heading import heading
from stagewright.launch.job import RECIPE_FILE, Job

HOME = "/home/stagewright"
"""Working directory in the container; runs lie in ``runs/`` below it."""
USER = 1000
EXTRA = "cloud"
"""What is installed beside the core: mirrors and data in object stores."""

_DOCKERFILE = """\
FROM python:{python}-slim-bookworm AS build
# The compiler and libjpeg's header are for the native decoder; Debian's own releases pin their versions.
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install --no-install-recommends -y gcc libc6-dev libjpeg62-turbo-dev \\
    && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# A wheel of stagewright beside this file is taken before the registry's.
RUN python -m venv /opt/stagewright \\
    && /opt/stagewright/bin/pip install --no-cache-dir --find-links . --constraint constraints.txt \\
        '{stagewright}'

FROM python:{python}-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \\
    && apt-get install --no-install-recommends -y libjpeg62-turbo \\
    && rm -rf /var/lib/apt/lists/*
ARG USER_ID={user}
RUN useradd --create-home --uid "$USER_ID" stagewright \\
    && install -d -o "$USER_ID" {home}/runs
COPY --from=build /opt/stagewright /opt/stagewright
{recipe}ENV PATH=/opt/stagewright/bin:$PATH PYTHONUNBUFFERED=1
USER ${{USER_ID}}
WORKDIR {home}
# The exec form: signals arrive at the launcher, and no shell is between.
ENTRYPOINT ["stagewright"]
CMD ["--help"]
"""


def image_files(job: Job) -> dict[str, str]:
    """Returns the Dockerfile, the pinned versions and, if the recipe is a file, the recipe."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    recipe = f"COPY --from=build /build/{RECIPE_FILE} {HOME}/{RECIPE_FILE}\n" if job.recipe_file is not None else ""
    text = _DOCKERFILE.format(python=python, stagewright=requirement(), user=USER, home=HOME, recipe=recipe)
    return {
        "Dockerfile": heading(job.command) + text,
        ".dockerignore": heading(job.command) + "*\n!constraints.txt\n!stagewright-*.whl\n!stagewright-*.tar.gz\n"
        f"!{RECIPE_FILE}\n",
        **pinned_files(job),
    }


def pinned_files(job: Job) -> dict[str, str]:
    """Returns the pinned versions and, if the recipe is a file, the recipe."""
    about = "The versions with which the plan was checked: what is installed where the command was given."
    files = {"constraints.txt": heading(job.command, about) + "".join(f"{line}\n" for line in installed_versions())}
    if job.recipe_file is not None:
        files[RECIPE_FILE] = heading(job.command, "A copy of the recipe that was given.") + job.recipe_file
    return files


def requirement() -> str:
    """Returns what pip installs: stagewright in this version, with what the cloud needs."""
    return f"stagewright[{EXTRA}]=={_version()}"


def installed_versions() -> list[str]:
    """Returns ``name==version`` for everything that stagewright needs, as it is installed here, without builds for one device
    (``+cpu``), which no registry has by that name."""
    found: dict[str, str] = {}
    waiting = [("stagewright", EXTRA)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # of another system, or an extra that is not installed
            continue
        if name != "stagewright":
            found[name] = distribution.version.partition("+")[0]
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                key = re.sub(r"[-_.]+", "-", needed.name).lower()
                waiting += [(key, one) for one in ("", *needed.extras)]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _version() -> str:
    try:
        return metadata.version("stagewright").partition("+")[0]
    except metadata.PackageNotFoundError:
        raise StorageError(
            "the version of stagewright is not known: it is not installed, only on the path",
            "an installed stagewright",
            "pip install it, then give the command again",
        ) from None
