"""The one thing that pyproject.toml cannot say: the native decoder, left out where no compiler or libjpeg header is."""

import sys

from setuptools import Extension, setup

WINDOWS = sys.platform == "win32"

setup(
    ext_modules=[
        Extension(
            "stagewright.data.images._native",
            [
                "native/module.c",
                "native/jpeg.c",
                "native/resize.c",
                "native/exact.c",
                "native/file.c",
                "native/huffman.c",
            ],
            depends=["native/file.h", "native/huffman.h", "native/jpeg.h", "native/resize.h"],
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            py_limited_api=True,
            libraries=["jpeg"] if WINDOWS else ["jpeg", "m"],
            extra_compile_args=["/O2"] if WINDOWS else ["-O3", "-std=c11", "-ffp-contract=off", "-fvisibility=hidden"],
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
