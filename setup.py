"""Builds the one extension module; everything else about the package is in pyproject.toml.

FASTSERVE_DEBUG=1   counts every allocation of our own C code and keeps the assertions in.
FASTSERVE_CFLAGS    replaces the optimisation flags (sanitizers, -march, -Og ...).
"""

import os
import zlib
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("FASTSERVE_DEBUG", "0") not in ("", "0")

DIRECTIVES = {
    "language_level": 3,
    "freethreading_compatible": True,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "cdivision": True,
    "embedsignature": True,
    "embedsignature.format": "python",
}


def compile_args() -> list[str]:
    flags = os.environ.get("FASTSERVE_CFLAGS")
    chosen = flags.split() if flags else ["-O3", "-g0"]
    return [*chosen, "-std=gnu11", "-fvisibility=hidden", "-fno-plt", "-Wno-unused-function",
            *(["-DFASTSERVE_DEBUG=1"] if DEBUG else [])]


def link_args() -> list[str]:
    flags = os.environ.get("FASTSERVE_CFLAGS")
    return flags.split() if flags else ["-Wl,-O1", "-Wl,--strip-all"]


def extension(name: str, source: str) -> Extension:
    """One extension over the header-only words of `engine/`: touch a word, and it is built again."""
    return Extension(
        name,
        [source],
        depends=[*glob("fastserve/engine/*.pxd"), *glob("fastserve/engine/*.h"), *glob("fastserve/*.pxi")],
        include_dirs=["fastserve/engine"],
        extra_compile_args=compile_args(),
        extra_link_args=["-pthread", *link_args()],
    )


def build_base() -> str:
    """Objects of other flags lie elsewhere: setuptools would take them for up to date."""
    flags = f"{os.environ.get('FASTSERVE_CFLAGS', '')} {DEBUG}"
    return "build" if flags == " False" else f"build/flags-{zlib.crc32(flags.encode()):08x}"


if __name__ == "__main__":
    setup(ext_modules=cythonize(
        [extension("fastserve._core", "fastserve/_core.pyx")],
        compiler_directives=DIRECTIVES,
        build_dir="build/cython",
    ), options={"build": {"build_base": build_base()}})
