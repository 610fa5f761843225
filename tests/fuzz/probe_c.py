"""The probe as C: `probe_c.py PLACE` writes PLACE/probe.c.

Knows: that setup.py names the directives and include paths of an extension. Never sees: a C compiler.
Invariant: the C is what Cython makes of tests/_probe.pyx for the interpreter that runs this.
"""

import contextlib
import importlib.util
import os
import shutil
import sys
from pathlib import Path

from Cython.Build import cythonize

ROOT = Path(__file__).resolve().parent.parent.parent


def main(place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    spec = importlib.util.spec_from_file_location("fastserve_setup", ROOT / "setup.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with contextlib.chdir(ROOT):                # setup.py speaks of paths in the checkout
        [made] = cythonize(
            [recipe.extension("_probe", "tests/_probe.pyx")],
            compiler_directives=recipe.DIRECTIVES,
            include_path=["."],
            build_dir=os.fspath(place / "cython"),
            force=True,
            quiet=True,
        )
        shutil.copy(made.sources[0], place / "probe.c")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
