"""The fuzzers are compiled and run beside the other tests: that takes a core for half a minute.

Knows: which test asks for them. Never sees: what they find. Invariant: they are started at most once, when it is known
that the test will run, which it does last; and none outlives the session.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.sh")
FUZZERS = pytest.StashKey[subprocess.Popen[str]]()


def asks_for_them(item: pytest.Item) -> bool:
    return item.name == "test_fuzzers_find_nothing"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=asks_for_them)


def pytest_collection_finish(session: pytest.Session) -> None:
    if any(map(asks_for_them, session.items)) and not session.config.option.collectonly:
        session.config.stash[FUZZERS] = subprocess.Popen(
            [RUN, "4"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=os.environ | {"PYTHON": sys.executable, "CFLAGS": ""})


def pytest_sessionfinish(session: pytest.Session) -> None:
    run = session.config.stash.get(FUZZERS, None)
    if run is not None and run.poll() is None:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
