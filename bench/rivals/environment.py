"""The rivals' virtual environment, and ours: python bench/rivals/environment.py makes both, `make bench` runs it.

Knows interpreters, pip and requirements.txt; nothing of how a rival is started. A rival is installed once; one
that could not be is tried again at the next run, and until then its reason is kept beside the others.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = HERE.parent / "build"
OURS = BUILD / "fastserve"
WANTED = "3.13"     # what most rivals have wheels for
PATIENCE = 600      # seconds for one installation: some compile

_ABOUT = "import sys, sysconfig; print(*sys.version_info[:2], sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
_VERSIONS = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
print(json.dumps({name: version(name) for name in sys.argv[1:]}))
"""


def requirements() -> dict[str, list[str]]:
    """What pip is given for each rival, by the rival's distribution."""
    lines = [line.split() for line in (HERE / "requirements.txt").read_text().splitlines()]
    return {words[0]: words for words in lines if words and not words[0].startswith("#")}


def folder() -> Path | None:
    """The environment that was made, if one was."""
    made = sorted(BUILD.glob("rivals-*/installed.json"), key=lambda path: path.parent.name == f"rivals-{WANTED}")
    return made[-1].parent if made else None


def python() -> str | None:
    place = folder()
    return str(place / "bin/python") if place else None


@functools.cache
def installed() -> dict[str, dict]:
    """For each rival what pip was asked for, and the reason if it failed."""
    place = folder()
    return json.loads((place / "installed.json").read_text()) if place else {}


def problem(distribution: str) -> str | None:
    if distribution not in installed():
        return "not installed: run `make bench`"
    return installed()[distribution]["problem"]


def versions() -> dict[str, str | None]:
    """What is installed of the rivals and of what they stand on."""
    interpreter = python()
    if not interpreter:
        return {}
    names = sorted({re.split("[<>=]", word)[0] for words in requirements().values() for word in words})
    done = subprocess.run([interpreter, "-c", _VERSIONS, *names], capture_output=True, text=True, check=True)
    return {"rivals_python": folder().name.partition("-")[2], **json.loads(done.stdout)}


def _about(interpreter: str) -> tuple[str, bool] | None:
    """The interpreter's version and whether it has a GIL; None if it does not run."""
    try:
        done = subprocess.run([interpreter, "-c", _ABOUT], capture_output=True, text=True, timeout=60)
        major, minor, free = done.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return f"{major}.{minor}", free == "0"


def choose() -> tuple[str, str]:
    """An interpreter of the wanted version, or else this one; and its version."""
    found = shutil.which(f"python{WANTED}")
    candidates = [*([found] if found else []),
                  *sorted(map(str, Path.home().glob(f".pyenv/versions/{WANTED}*/bin/python"))), sys.executable]
    about = {one: _about(one) for one in candidates}
    fitting = [one for one in candidates if about[one] == (WANTED, True)]
    chosen = fitting[0] if fitting else sys.executable
    return chosen, about[chosen][0]


def _run(*command: str | Path) -> str | None:
    """The complaint of a command that fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as trouble:
        return str(trouble)
    if done.returncode == 0:
        return None
    said = done.stderr.strip() or done.stdout.strip()
    telling = re.search(r"^.*(?:fatal error|No matching distribution|Could not find).*$", said, re.MULTILINE)
    return (telling[0] if telling else said.rpartition("\n")[2]).strip()


def _make(place: Path, interpreter: str) -> None:
    if not (place / "bin/python").exists() and (trouble := _run(interpreter, "-m", "venv", place)):
        sys.exit(f"bench: no virtual environment (Debian's package: python3-venv): {trouble}")


def _pip(place: Path, *words: str) -> str | None:
    return _run(place / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def install_rivals(interpreter: str, version: str) -> None:
    place = BUILD / f"rivals-{version}"
    _make(place, interpreter)
    book = place / "installed.json"
    known = json.loads(book.read_text()) if book.exists() else {}
    for distribution, words in requirements().items():
        if known.get(distribution) != {"asked": words, "problem": None}:
            print(f"installing {distribution} for Python {version}", flush=True)
            known[distribution] = {"asked": words, "problem": _pip(place, *words)}
            if known[distribution]["problem"]:
                print(f"  it does not install: {known[distribution]['problem']}", flush=True)
            book.write_text(json.dumps(known, indent=1) + "\n")


def install_ours(interpreter: str, version: str) -> None:
    """fastserve as its users get it, built again whenever its source is newer."""
    sources = [path for path in (ROOT / "fastserve").rglob("*") if path.suffix not in (".c", ".so", ".pyc")]
    newest = max(path.stat().st_mtime for path in [*sources, ROOT / "setup.py", ROOT / "pyproject.toml"]
                 if path.is_file())
    mark = OURS / "installed"
    if mark.exists() and mark.stat().st_mtime > newest and mark.read_text() == interpreter:
        return
    shutil.rmtree(OURS, ignore_errors=True)
    _make(OURS, interpreter)
    print(f"building and installing fastserve for Python {version}", flush=True)
    if trouble := _pip(OURS, str(ROOT)):
        sys.exit(f"bench: fastserve does not install: {trouble}")
    mark.write_text(interpreter)


def main() -> None:
    BUILD.mkdir(exist_ok=True)
    interpreter, version = choose()
    install_ours(interpreter, version)
    install_rivals(interpreter, version)


if __name__ == "__main__":
    main()
