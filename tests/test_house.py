"""The laws of the house, kept over its source text (docs/design.md, "The house").

Knows: how a line of Cython looks, which places may do what the laws allow only in named places.
Never sees: a socket, but for one test, which counts allocations in a core that is compiled with counting.
Invariant: each test names a law; what it allows beside the law stands in a written list, so that an exception
is added by somebody who reads the law first.

`python tests/test_house.py` prints the table of cimports that docs/design.md holds.
"""

import ast
import fcntl
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fastserve"
ENGINE = PACKAGE / "engine"
PAGE = PACKAGE / "_core.pyx"
DOOR = PACKAGE / "_worker.pxi"
INCLUDES = sorted(PACKAGE.glob("*.pxi"))
WORDS = sorted(path for path in ENGINE.glob("*.pxd") if path.name != "__init__.pxd")
HEADERS = sorted(ENGINE.glob("*.h"))
CYTHON = [PAGE, *INCLUDES, *WORDS]
HANG_LIMIT = 120  # seconds; for the compiler, and for what hangs

SANS_IO = ("scan", "http1", "body", "reply", "limits", "health", "metrics", "stack")
IO = {"net", "poll", "conn", "lease", "reactor", "deadline"}

UNDER_THE_GIL = {
    "drop_references", "phrase_of", "copy_text", "stacks", "stack_of", "fill_limits", "fill_trusted", "ns",
    "reactor_make", "tell", "_gil_enabled", "complain", "fail", "enter_house", "leave_house", "close_descriptors",
    "reactor_close", "reactor_unmake", "forget_house", "peer_of",
}
"""Functions of the door outside its classes that need the GIL: start, end, the log."""

ENTRANCES = {
    r"\bPyObject_CallOneArg\(": "Worker.invoke",
    r"\bon_worker_start\(\)": "Core.work",
    r"\bgrow\(\)": "Core.keep",
    r"\bself\.limited\(": "Timeout.__call__",
}
"""Where Python of the user or of server.py is called from the core, by the text of the call."""

MAY_ALLOCATE = {
    "mem_map": {"pool_block"},
    "pool_block": {"pool_make", "pool_lend"},
    "mem_take": {"body_grow", "keep_trailers", "answer_metrics", "log_make", "lend_record",
                 "Core.__cinit__"},
    "mem_take_zeroed": {"slots_make", "peers_make", "desk_apart", "Core.__cinit__"},
    "mem_grow": {"house_drops", "buffer_put"},
}
"""A start, a pool that is empty, a body beyond the largest pool, a worker's first streamed body, the text of all
metrics, records of the access log while it is behind, a list of pointers or a ctx that grows, one that is detached."""

BELOW = {
    "__init__": {"_core", "compression", "config", "coroutines", "errors", "headers", "router", "server",
                 "static", "timeouts", "uploads"},
    "__main__": {"cli"},
    "cli": {"", "server", "welcome", "binds", "config", "errors"},
    "server": {"_core", "binds", "config", "coroutines", "errors"},
    "_core": {"args", "cookies", "dates", "documents", "errors", "forms", "forwarded", "headers",
              "negotiation", "sending", "uploads"},
    "forms": {"args", "errors", "uploads"},
    "uploads": {"args", "errors"},
    "welcome": {"", "_core"},
    "config": {"errors", "forwarded"},
    "router": {"_core", "coroutines"},
    "coroutines": {"_core", "errors"},
    "timeouts": {"_core", "coroutines"},
    "headers": set(),
    "sending": {"_core", "conditions", "dates"},
    "static": {"_core", "sending"},
    "args": {"errors"},
    "compression": {"_core", "coroutines", "errors"},
    "conditions": {"dates"},
    "cookies": {"dates"},
    "dates": set(),
    "documents": {"errors"},
    "forwarded": set(),
    "negotiation": set(),
    "binds": set(),
    "errors": set(),
}
"""What each module of the house may import of the package; "" is the package itself. A module that is not
in this list may import the public names only."""

_QUOTED = re.compile(r'"""[\s\S]*?"""|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|#[^\n]*')
_C_QUOTED = re.compile(r'/\*[\s\S]*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'')
_FUNCTION = re.compile(r" *(?P<kind>cdef|cpdef|def)\s[^=(]*?(?P<name>\w+)\(.*:\s*$")
_ALLOWED_IN_ENGINE = re.compile(
    r"from \S+ cimport |cdef extern from .*\bnogil:$|cdef (struct|enum|union)\b.*:$|ctypedef |"
    r"cdef inline .*\) noexcept nogil:$"
)


# Reading


def code(path: Path, strings: bool = True) -> str:
    """The text without comments and docstrings, lines where they were; `strings`: with other strings."""

    def keep(match: "re.Match[str]") -> str:
        text = match[0]
        if text.startswith(("#", "/*", "//", '"""')):
            return "\n" * text.count("\n")
        return text if strings else text[0] + text[-1]

    return (_C_QUOTED if path.suffix == ".h" else _QUOTED).sub(keep, path.read_text())


def logical_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines joined while a parenthesis is open, each with the number of its first; no empty ones."""
    whole, first = "", 0
    for number, line in enumerate(code(path, strings=False).splitlines(), 1):
        if not whole:
            first = number
        whole = f"{whole} {line.strip()}" if whole else line.rstrip()
        if whole.count("(") <= whole.count(")") and whole.count("[") <= whole.count("]"):
            if whole.strip():
                yield first, whole
            whole = ""
    assert not whole, f"{path.name}:{first}: a parenthesis stays open"


@dataclass
class Function:
    """One function with a body: `name` is Class.name for a method."""

    path: Path
    line: int
    name: str
    kind: str
    head: str
    body: str

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.line} {self.name}"


def functions(path: Path) -> list[Function]:
    found: list[Function] = []
    owner = ""
    open_ones: list[tuple[int, Function]] = []
    for number, line in logical_lines(path):
        indent = len(line) - len(line.lstrip())
        open_ones = [(at, function) for at, function in open_ones if at < indent]
        for _, function in open_ones:
            function.body += line + "\n"
        if indent == 0:
            klass = re.match(r"(?:cdef )?class (\w+)", line)
            owner = klass[1] if klass else ""
        match = _FUNCTION.match(line)
        if match and not re.match(r"\s*cdef (extern|class)", line):
            name = f"{owner}.{match['name']}" if owner else match["name"]
            function = Function(path, number, name, match["kind"], line, "")
            found.append(function)
            open_ones.append((indent, function))
    return found


def extern_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Number, line and the head of its block, for each function that is declared and not defined."""
    head, depth = "", 0
    for number, line in logical_lines(path):
        indent = len(line) - len(line.lstrip())
        if line.startswith("cdef extern"):
            head, depth = line, 4
        elif indent == 0:
            head = ""
        elif head and indent == depth and "(" in line:
            yield number, line, head


def cimports(path: Path) -> list[str]:
    """The modules that a file cimports, in order."""
    found = []
    for _, line in logical_lines(path):
        match = re.match(r"\s*(?:from\s+(\S+)\s+)?cimport\s+(\S+)", line)
        if match:
            found.append(match[1] or match[2])
    return found


def word(name: str) -> Path:
    return ENGINE / f"{name}.pxd"


def arrows() -> dict[str, list[str]]:
    """Each word of the engine and the words that it cimports."""
    prefix = "fastserve.engine."
    return {
        path.stem: sorted({name.removeprefix(prefix) for name in cimports(path) if name.startswith(prefix)})
        for path in WORDS
    }


def cimport_table() -> str:
    """The table between the marks <!-- cimports --> in docs/design.md: each word below those it stands on."""
    left, rows = arrows(), ["| word | stands on |", "|---|---|"]
    done: set[str] = set()
    while left:
        ready = sorted(name for name, below in left.items() if done.issuperset(below))
        assert ready, f"these words cimport each other in a ring: {sorted(left)}"
        for name in ready:
            rows.append(f"| {name} | {', '.join(left.pop(name)) or '-'} |")
        done.update(ready)
    return "\n".join(rows)


# Each file says what it is


@pytest.mark.parametrize("path", [*WORDS, *HEADERS], ids=lambda path: path.name)
def test_a_file_of_the_engine_says_what_it_knows_never_sees_and_keeps(path: Path) -> None:
    opening = re.match(r'/\*[\s\S]*?\*/' if path.suffix == ".h" else r'"""[\s\S]*?"""', path.read_text())
    assert opening, "it opens with something else than its description"
    for mark in ("Knows:", "Never sees:", "Invariant:"):
        assert mark in opening[0], f"the description says nothing of {mark!r}"


# Law 1: below the door no Python object exists


@pytest.mark.parametrize("path", WORDS, ids=lambda path: path.stem)
def test_law_1_the_engine_is_structs_and_functions_that_need_no_python(path: Path) -> None:
    for number, line in logical_lines(path):
        place = f"{path.name}:{number}: {line.strip()}"
        assert not re.search(r"\b(object|class|lambda|def|raise|try|except|yield|global)\b", line), place
        assert not re.search(r"(?<!c)\bimport\b", line), place
        if line[0] != " ":
            assert _ALLOWED_IN_ENGINE.match(line), f"neither type nor word: {place}"


@pytest.mark.parametrize("path", WORDS, ids=lambda path: path.stem)
def test_law_1_the_engine_cimports_c_and_itself_alone(path: Path) -> None:
    for name in cimports(path):
        assert name.startswith(("libc.", "fastserve.engine.")), f"{path.name} cimports {name}"


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.name)
def test_law_1_nogil_is_never_without_noexcept(path: Path) -> None:
    """Without `noexcept` a nogil function takes the GIL after each call, and no compiler complains."""
    for function in functions(path):
        assert ("nogil" in function.head) <= ("noexcept" in function.head), function.place
    for number, line, head in extern_lines(path):
        if "nogil" in head:
            assert "noexcept" in line, f"{path.name}:{number}: {line.strip()}"
    for number, line in logical_lines(path):
        assert not re.search(r"\)\s*nogil\b", line), f"{path.name}:{number}: {line.strip()}"


# Law 2: one door


@pytest.mark.parametrize("path", CYTHON, ids=lambda path: path.name)
def test_law_2_nothing_takes_the_gil_by_itself(path: Path) -> None:
    assert not re.search(r"\bwith\s+gil\b|PyGILState|PyEval_(Save|Restore)Thread|PyThreadState_", code(path))


def test_law_2_the_page_needs_no_python() -> None:
    page = functions(PAGE)
    assert len(page) > 30, "the page was not read"
    for function in page:
        assert function.kind == "cdef", function.place
        assert function.head.rstrip().endswith(") noexcept nogil:"), function.place


def test_law_2_outside_its_classes_the_door_has_named_functions_only() -> None:
    free = {f.name for f in functions(DOOR) if "." not in f.name and "nogil" not in f.head}
    assert free == UNDER_THE_GIL


def test_law_2_python_is_called_at_the_named_entrances_only() -> None:
    everything = [function for path in CYTHON for function in functions(path)]
    for called, entrance in ENTRANCES.items():
        callers = [f.name for f in everything for _ in re.finditer(called, f.body)]
        assert callers == [entrance], called
    for path in CYTHON:
        calls = set(re.findall(r"\b(Py(?:Object_(?:Call|Vectorcall)|Eval_|Vectorcall_)\w*)\b", code(path)))
        assert calls <= {"PyObject_CallOneArg"}, path.name
        assert not re.search(r"\bhandler\(", code(path)), f"{path.name} calls a handler beside the door"


def test_law_2_a_handler_runs_between_publishing_and_taking_back() -> None:
    """In the function that calls, and nowhere in between is the reactor touched, nor by who calls off lease."""
    [call, alone, answer] = [f for f in functions(DOOR) if f.name in ("Worker.call", "Worker.call_alone",
                                                                      "Worker.answer")]
    invoked = call.body.index("self.answer(c)")
    taken = call.body.index("lease_take_back(", invoked)
    published = call.body.rindex("lease_publish(", 0, invoked)
    between = call.body[call.body.index("\n", published):taken]
    touched = set(re.findall(r"\br\.\w+", between)) - {"r.lease"}
    assert not touched, f"between CALL and its end the door touches {touched}"
    assert "reactor" not in answer.body
    assert re.findall(r"\breactor\.\w+", alone.body) == ["reactor.taken_along"], "which is atomic"


# Law 3: sans-io in the middle


@pytest.mark.parametrize("name", SANS_IO)
def test_law_3_the_middle_never_sees_a_descriptor(name: str) -> None:
    graph, seen, new = arrows(), set(), {name}
    while new:
        seen |= new
        new = {below for above in new for below in graph[above]} - seen
    assert not seen & IO, f"{name} stands on {seen & IO}"
    for path in (word(name), ENGINE / f"{name}.h"):
        if path.exists():
            found = re.search(r"\b(fd|epoll\w*|sock\w*|recv|send\w*|errno)\b|sys/socket|unistd", code(path))
            assert not found, f"{path.name} mentions {found}"


# Law 4: everything is made at start


def test_law_4_memory_is_taken_in_named_places_only() -> None:
    everything = [function for path in CYTHON for function in functions(path)]
    for name, places in MAY_ALLOCATE.items():
        assert {f.name for f in everything if re.search(rf"\b{name}\(", f.body)} == places, name


@pytest.mark.parametrize("path", [*CYTHON, *HEADERS], ids=lambda path: path.name)
def test_law_4_there_is_one_way_to_the_allocator(path: Path) -> None:
    if path.name != "mem.h":
        ways = r"\b(malloc|calloc|realloc|free|strdup|mmap|alloca|PyMem_\w+|PyObject_Malloc)\b\s*\("
        # The queues of a ring are the kernel's memory, mapped once.
        text = code(path).replace("mmap(", "") if path.name == "ring.h" else code(path)
        found = re.search(ways, text)
        assert not found, f"{path.name}: {found}"


COUNTED = """
import socket, sys, threading
from fastserve import Server

both = threading.Barrier(2)

def handler(ctx):
    if ctx.path == "/both":
        both.wait(60)
    ctx.set_header("X-Seen", ctx.headers.get("user-agent", ""))
    ctx.write("hello ")
    ctx.write(ctx.body)

def head(path):
    fields = "Host: x\\r\\nUser-Agent: t\\r\\nContent-Length: 5\\r\\n"
    return f"POST {path} HTTP/1.1\\r\\n{fields}\\r\\nworld".encode()

def replies(client, count):
    rest, seen = b"", 0
    while seen < count:
        more = client.recv(65536)
        assert more, "closed"
        rest += more
        seen += rest.count(b"hello world")
        rest = rest[-10:] if not rest.endswith(b"hello world") else b""

server = Server(handler, workers=2, reactors=1).start("127.0.0.1:0")
host, _, port = server.addresses[0].rpartition(":")
clients = [socket.create_connection((host, int(port)), 60) for _ in range(8)]
for _ in range(2):                  # each worker has run a handler of its own
    for client in clients[:2]:
        client.sendall(head("/both"))
    for client in clients[:2]:
        replies(client, 1)

def rounds(many):
    for _ in range(many):
        for client in clients:
            client.sendall(head("/") * 10)
        for client in clients:
            replies(client, 10)

rounds(25)
before = server.stats()
assert before["allocations"], "the core does not count"
rounds(250)
after = server.stats()
assert server.shutdown(60)
print(after["requests"] - before["requests"], after["allocations"] - before["allocations"])
"""


@pytest.fixture(scope="module")
def counting_core() -> Path:
    """A place that holds the package with a core that counts its allocations; made when it is out of date."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip(f"no compiler: {compiler}")
    pytest.importorskip("Cython")
    place = ROOT / "build" / "counting" / str(sysconfig.get_config_var("SOABI"))
    place.mkdir(parents=True, exist_ok=True)
    sources = [PAGE, ROOT / "setup.py", *INCLUDES, *WORDS, *HEADERS, *PACKAGE.glob("*.h")]
    newest = max(path.stat().st_mtime for path in sources)
    stamp = place / "stamp"
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.stat().st_mtime < newest:
            subprocess.run(
                [sys.executable, "setup.py", "-q", "build_ext", "--force", "--build-lib", str(place / "lib"),
                 "--build-temp", str(place / "temp")],
                cwd=ROOT, check=True, capture_output=True, timeout=HANG_LIMIT,
                env=os.environ | {"FASTSERVE_DEBUG": "1", "FASTSERVE_CFLAGS": "-O0"},
            )
            stamp.touch()
            os.utime(stamp, (newest, newest))
        for path in PACKAGE.glob("*.py"):
            shutil.copy2(path, place / "lib" / "fastserve" / path.name)
    return place / "lib"


def test_law_4_a_warm_server_allocates_nothing(counting_core: Path) -> None:
    run = subprocess.run([sys.executable, "-c", COUNTED], capture_output=True, text=True, timeout=HANG_LIMIT,
                         env=os.environ | {"PYTHONPATH": str(counting_core)}, cwd=counting_core)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["20000", "0"], "requests, and what they allocated"


# Law 5: one list per fact


def test_law_5_status_lines_stand_in_status_h_alone() -> None:
    for path in [*CYTHON, *HEADERS, *PACKAGE.glob("*.py")]:
        lines = set(re.findall(r'HTTP/1\.[01] ?[1-5]\d\d', code(path)))
        assert not lines, path.name
        if path.name != "testing.py":       # which is a client
            assert not re.search(r"http\.client", code(path)), path.name
        assert not re.search(r"\bHTTPStatus\b|\bresponses\b", code(path)), path.name


def test_law_5_every_limit_comes_from_config_once_and_is_used() -> None:
    struct = re.search(r"cdef struct Limits:\n([\s\S]*?)\n(?=\S)", code(word("limits")))
    assert struct
    limits = [line.split()[-1].partition("[")[0] for line in struct[1].splitlines() if line.strip()]
    [fill] = [f for f in functions(DOOR) if f.name == "fill_limits"]
    filled = re.findall(r"^\s*lim\.(\w+) = .*\bconfig\.\w+", fill.body, re.M)
    filled += re.findall(r"copy_text\(lim\.(\w+), config\.\w+", fill.body)
    assert sorted(filled) == sorted(limits)
    elsewhere = "\n".join(code(path) for path in CYTHON).replace(fill.body, "")
    for name in limits:
        assert re.search(rf"\b(?:lim|limits)\.{name}\b", elsewhere), f"nobody keeps the limit {name}"


def test_law_5_every_field_of_config_is_used() -> None:
    from fastserve.config import Config

    users = [*CYTHON, *(path for path in PACKAGE.glob("*.py") if path.name != "config.py")]
    used = {name for path in users for name in re.findall(r"config\.(\w+)", code(path))}
    for field in fields(Config):
        assert field.name in used, f"{field.name} is read by nobody"


def test_law_5_no_argument_repeats_a_field_of_config() -> None:
    from fastserve.config import Config

    names = {field.name for field in fields(Config)}
    for path in (PACKAGE / "server.py", PACKAGE / "cli.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = {a.arg for a in (*node.args.args, *node.args.kwonlyargs)}
                assert not names & arguments, f"{path.name}: {node.name}"


# Arrows point down only


def test_arrows_of_the_engine_have_no_ring_and_never_point_up() -> None:
    graph = arrows()
    for name, below in graph.items():
        assert set(below) <= graph.keys(), f"{name} stands on what is no word: {set(below) - graph.keys()}"
    cimport_table()


def test_the_table_of_cimports_in_the_design_is_true() -> None:
    page = ROOT / "docs" / "design.md"
    mark = "<!-- cimports -->"
    text = page.read_text() if page.exists() else ""
    if mark not in text:
        pytest.skip(f"docs/design.md has no table behind {mark}")
    told = text.split(mark)[1].partition("<!--")[0].strip()
    assert told == cimport_table(), "python tests/test_house.py prints the true one"


def imports(path: Path) -> set[str]:
    """What a module imports of the package, by the first name under it; "" for the package itself."""
    found: set[str] = set()
    forms = r"^[ \t]*from fastserve(?:\.(\w+))?[\w.]* import (\w+)|^[ \t]*import fastserve(?:\.(\w+))?"
    for match in re.finditer(forms, code(path), re.M):
        name = match[1] or match[3] or ""
        if not name and match[2] and (PACKAGE / f"{match[2]}.py").exists():
            name = match[2]
        found.add(name)
    return found


@pytest.mark.parametrize(
    "path", [*sorted(PACKAGE.rglob("*.py")), PAGE, *INCLUDES], ids=lambda path: path.name
)
def test_arrows_of_the_package_point_down_only(path: Path) -> None:
    name = "_core" if path == PAGE or path.suffix == ".pxi" else path.stem
    if path.parent == PACKAGE and name in BELOW:
        assert imports(path) <= BELOW[name]
    else:
        # Adapters and helpers know the public surface only.
        assert not imports(path) & {"_core", "server", "cli"}


if __name__ == "__main__":
    print(cimport_table())
