"""Builds the probe when it is older than its sources, gives tests their wire cases, runs programs beside them.

Knows: where the checkout lies, how setup.py compiles an extension, how tests/cases/*.toml are written.
Never sees: the package `fastserve` itself: whether tests meet an installed wheel or a compiled tree is not
decided here, so the root of the checkout never enters sys.path.

FASTSERVE_CFLAGS        other flags (sanitizers, -DFASTSERVE_NO_SIMD); each set builds in a place of its own
FASTSERVE_PROBE_DIR     that place, if it shall be another one
FASTSERVE_SEED          the seed of all random tests; printed at the head of each run
"""

import contextlib
import fcntl
import gc
import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "tests" / "_probe.pyx"
CASES = ROOT / "tests" / "cases"
SEED = int(os.environ.setdefault("FASTSERVE_SEED", str(random.SystemRandom().randrange(2**32))))


# The probe

def probe_dir() -> Path:
    chosen = os.environ.get("FASTSERVE_PROBE_DIR")
    if chosen:
        return Path(chosen).resolve()
    flags = os.environ.get("FASTSERVE_CFLAGS", "") + os.environ.get("FASTSERVE_DEBUG", "")
    mark = "-" + hashlib.sha256(flags.encode()).hexdigest()[:8] if flags else ""
    return ROOT / "build" / "probe" / (sysconfig.get_config_var("SOABI") + mark)


def build_probe() -> Path:
    place = probe_dir()
    place.mkdir(parents=True, exist_ok=True)
    built = place / f"_probe{sysconfig.get_config_var('EXT_SUFFIX')}"
    engine = ROOT / "fastserve" / "engine"
    parts = SOURCE.parent.glob("_probe*.pxi")
    sources = [SOURCE, *parts, ROOT / "setup.py", *engine.glob("*.pxd"), *engine.glob("*.h")]
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists() or built.stat().st_mtime < max(path.stat().st_mtime for path in sources):
            compile_probe(place)
    return place


def compile_probe(place: Path) -> None:
    from Cython.Build import cythonize
    from setuptools import Distribution

    spec = importlib.util.spec_from_file_location("fastserve_setup", ROOT / "setup.py")
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    with contextlib.chdir(ROOT):                # setup.py speaks of paths in the checkout
        modules = cythonize(
            [recipe.extension("_probe", "tests/_probe.pyx")],
            compiler_directives=recipe.DIRECTIVES,
            include_path=["."],
            build_dir=str(place / "cython"),
            force=True,
            quiet=True,
        )
        command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.force = str(place), str(place / "temp"), True
        command.ensure_finalized()
        command.run()


sys.path.insert(0, str(build_probe()))


def pytest_report_header() -> str:
    return f"probe: {probe_dir()}\nseed: FASTSERVE_SEED={SEED}"


@pytest.fixture
def chance() -> random.Random:
    """The same run of luck for each test, whichever tests run before it."""
    return random.Random(SEED)


# The cases

def wire(text: str | list) -> bytes:
    """A string is its bytes, \\u0000 to \\u00ff; a list is its parts, {text, times} a repeated one."""
    parts = text if isinstance(text, list) else [text]
    return b"".join(
        part.encode("latin-1") if isinstance(part, str) else part["text"].encode("latin-1") * part["times"]
        for part in parts
    )


def cases(stem: str) -> list:
    with open(CASES / f"{stem}.toml", "rb") as file:
        found = tomllib.load(file)["case"]
    names = [case["name"] for case in found]
    assert len(set(names)) == len(names), f"{stem}.toml names two cases alike"
    for case in found:
        case.update({key: wire(case[key]) for key in ("bytes", "body", "left", "trailers") if key in case})
    return [pytest.param(case, id=case["name"]) for case in found]


def fits(case: dict, verdict: str | int | None = None, up_to: int | None = None) -> bool:
    return verdict in (None, case["verdict"]) and (up_to is None or len(case["bytes"]) <= up_to)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers",
                            "wire(*stems, verdict=None, up_to=None): run once for each case of "
                            "tests/cases/<stem>.toml, or for those with that verdict, of that length")
    config.addinivalue_line("markers", "last: run behind all others, because a program beside them has the work")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker("wire")
    if mark and "case" in metafunc.fixturenames:
        chosen = [case for stem in mark.args for case in cases(stem) if fits(case.values[0], **mark.kwargs)]
        metafunc.parametrize("case", chosen)


# Programs beside the tests: they compute for long, and the tests wait for most of their time

BESIDE = pytest.StashKey[list[subprocess.Popen[str]]]()


def beside(config: pytest.Config, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a program that may run as long as the tests do; marked `last`, one of them judges what it says."""
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
                           env=os.environ | environment)
    config.stash.setdefault(BESIDE, []).append(run)
    return run


def is_last(item: pytest.Item) -> bool:
    return item.get_closest_marker("last") is not None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=is_last)


def pytest_collection_finish() -> None:
    """Thousands of tests are collected and stay: no collection of garbage needs to walk over them again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    for run in session.config.stash.get(BESIDE, []):
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
