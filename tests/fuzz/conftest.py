"""The fuzzers are compiled and run beside the other tests: that takes a core for half a minute.

Knows: which test asks for them. Never sees: what they find. Invariant: they are started at most once, when it is known
that the test will run.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import beside

RUN = Path(__file__).with_name("run.sh")
FUZZERS = pytest.StashKey[subprocess.Popen[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    asked = any(item.name == "test_fuzzers_find_nothing" for item in session.items)
    if asked and not session.config.option.collectonly:
        session.config.stash[FUZZERS] = beside(session.config, RUN, "4", PYTHON=sys.executable, CFLAGS="")
