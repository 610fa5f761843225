"""Builds what the micro benches run on: the package around the driver's core, and the words beside it.

Knows: how setup.py compiles an extension, where the checkout lies. Never sees: what is measured.

`place()` is a folder for the front of sys.path. In it lies a whole package `fastserve`: the Python files of the
checkout, and as `_core` the driver (the core with clients in memory). So what is installed does not matter. Flags are
the wheel's; symbols and line numbers stay in, for a profiler, and change no instruction.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "fastserve"


def place() -> Path:
    """The folder, with everything in it up to date."""
    base = ROOT / "build" / "micro" / str(sysconfig.get_config_var("SOABI"))
    base.mkdir(parents=True, exist_ok=True)
    sources = [*HERE.glob("*.pyx"), *HERE.glob("*.h"), HERE / "compiled.py", ROOT / "setup.py",
               *PACKAGE.glob("*.p[yx][xi]"), *PACKAGE.glob("*.h"), *PACKAGE.glob("engine/*")]
    newest = max(path.stat().st_mtime for path in sources)
    stamp = base / "stamp"
    with open(base / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            _compile(base)
            stamp.touch()
            os.utime(stamp, (newest, newest))
        for path in PACKAGE.glob("*.py"):
            shutil.copy2(path, base / "lib" / "fastserve" / path.name)
    return base / "lib"


def _compile(base: Path) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution

    spec = importlib.util.spec_from_file_location("fastserve_setup", ROOT / "setup.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with contextlib.chdir(ROOT):                # setup.py speaks of paths in the checkout
        core = recipe.extension("fastserve._core", "bench/micro/_driver.pyx")
        core.extra_compile_args += ["-include", "bench/micro/transport.h"]
        words = recipe.extension("_words", "bench/micro/_words.pyx")
        for extension in (core, words):
            extension.include_dirs += ["fastserve", "bench/micro"]
            extension.extra_compile_args += ["-g", "-Wno-sign-compare"]
            extension.extra_link_args = [arg for arg in extension.extra_link_args if arg != "-Wl,--strip-all"]
        modules = cythonize([core, words], compiler_directives=recipe.DIRECTIVES, include_path=["."],
                            build_dir=str(base / "cython"), force=True, quiet=True)
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.force = str(base / "lib"), str(base / "temp"), True
        command.ensure_finalized()
        command.run()
