"""The types that a program's checkers see, and the words that its author reads.

Knows: the installed package as a checker and as `help` show it, and examples/. Never sees: a request. Invariant: a
public name has its types and its docstring, and what the stub says of the core is what the core is.
"""

import ast
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import GetSetDescriptorType

import pytest

import fastserve

ROOT = Path(__file__).resolve().parent.parent
HOME = Path(fastserve.__file__).parent
HANG_LIMIT = 300  # seconds; for a checker that hangs

MISUSES = """\
from fastserve import Headers, RequestCtx, Router, Server, timeout
from fastserve.testing import Client

def answers(ctx: RequestCtx) -> str:
    return ctx.path

async def waits(ctx: RequestCtx) -> None:
    ctx.write("late")

def handler(ctx: RequestCtx) -> None:
    ctx.write(1)                                        # wrong
    ctx.status = "404"                                  # wrong
    ctx.path = "/"                                      # wrong
    ctx.missing                                         # wrong
    ctx.headers["a"] = "b"                              # wrong
    ctx.headers.get("a").upper()                        # wrong
    ctx.headers.get("a", "").upper()
    ctx.query.int("a") + 1                              # wrong
    ctx.query.int("a", 0) + 1
    ctx.set_cookie("a", "b", True)                      # wrong
    ctx.set_cookie("a", "b", max_age=1, same_site=None)
    ctx.stream(b"a" for _ in range(3))
    ctx.stream(lambda out: out.write(b"a"), length=1)
    ctx.stream(3)                                       # wrong

RequestCtx(3)                                           # wrong
Headers({})                                             # wrong
Server(answers)                                         # wrong
Server(waits)
Server(Router()).start("127.0.0.1:0").addresses[0].upper()
Router().get("/", answers)                              # wrong
Router().get("/", handler)
Router().get("/", waits)
timeout(waits, 1.0)(3)                                  # wrong
Router().post("/")(handler)
Client(handler).get("/").headers.get("a").upper()       # wrong
"""


# What a checker says


def checker(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run where nothing but the package that is tested can be found."""
    pytest.importorskip("mypy", reason="mypy is not installed here")
    place = {"PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)} if HOME.parent == ROOT else {}
    return subprocess.run([sys.executable, "-m", *arguments], cwd=tmp_path, env=os.environ | place,
                          capture_output=True, text=True, timeout=HANG_LIMIT)


def strict(tmp_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return checker(tmp_path, "mypy", "--strict", "--cache-dir", str(ROOT / "build" / "mypy"), *arguments)


def test_the_stub_is_what_the_core_is(tmp_path: Path) -> None:
    run = checker(tmp_path, "mypy.stubtest", "fastserve", "--concise", "--allowlist",
                  str(ROOT / "tests" / "stubtest.allow"))
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_examples_are_well_typed(tmp_path: Path) -> None:
    run = strict(tmp_path, *map(str, sorted((ROOT / "examples").glob("*.py"))))
    assert run.returncode == 0, run.stdout + run.stderr


def test_a_checker_finds_what_is_wrong_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "misuses.py").write_text(MISUSES)
    run = strict(tmp_path, "misuses.py")
    found = {int(line.split(":")[1]) for line in run.stdout.splitlines() if ": error: " in line}
    wrong = {number for number, line in enumerate(MISUSES.splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, run.stdout + run.stderr


def test_each_word_of_the_stub_has_its_types() -> None:
    """Nothing is typed by silence: mypy lets attributes of a stub pass that pyright calls unknown."""
    for node in ast.walk(ast.parse((HOME / "_core.pyi").read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            arguments += filter(None, (node.args.vararg, node.args.kwarg))
            bare = {a.arg for a in arguments if a.annotation is None} - {"self", "cls"}
            assert node.returns is not None and not bare, f"line {node.lineno}: {node.name}"
        elif isinstance(node, ast.ClassDef):
            assert not any(isinstance(inner, ast.Assign) for inner in node.body), f"line {node.lineno}: {node.name}"


# What `help` says


def described(value: object, name: str) -> str:
    """The docstring, without the signature that Cython puts in front of it."""
    text = inspect.getdoc(value) or ""
    return text.partition("\n\n")[2] if text.startswith((f"{name}(", f"{name}: ")) else text


def public_words() -> Iterator[tuple[str, str]]:
    for module in ("fastserve", "fastserve.testing"):
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            yield f"{module}.{name}", described(value, name)
            if inspect.isclass(value):
                kinds = [kind for kind in value.__mro__ if kind.__module__.startswith("fastserve")]
                for word in sorted({word for kind in kinds for word in vars(kind) if not word.startswith("_")}):
                    found = inspect.getattr_static(value, word)
                    if callable(found) or isinstance(found, property | classmethod | GetSetDescriptorType):
                        yield f"{module}.{name}.{word}", described(getattr(value, word), word)
    for word, value in vars(fastserve.Router()).items():
        if not word.startswith("_"):
            yield f"fastserve.Router().{word}", described(value, word)


def test_every_public_name_has_a_docstring() -> None:
    words = dict(public_words())
    assert {"fastserve.RequestCtx.write", "fastserve.RequestCtx.path", "fastserve.Headers.get", "fastserve.Args.int",
            "fastserve.Server.stats", "fastserve.File.size", "fastserve.Router().get",
            "fastserve.testing.Client.get"} <= words.keys()
    assert [name for name, text in words.items() if not text] == []
