"""The model is searched beside the other tests: that takes a core for a minute or two.

Knows: which tests judge a search, and of which instance. Never sees: what is found. Invariant: what this run asks for
is searched, once, and no more; a core is left to whatever else it asks for.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import beside

HERE = Path(__file__).parent
SEARCHES = pytest.StashKey[subprocess.Popen[str]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    asked = {item.callspec.params["instance"]: item.originalname
             for item in session.items if item.path.parent == HERE and isinstance(item, pytest.Function)}
    if asked and not session.config.option.collectonly:
        cores = os.cpu_count() or 1
        at_a_time = cores if len(asked) == len(session.items) else max(1, cores - 1)
        session.config.stash[SEARCHES] = beside(
            session.config, sys.executable, HERE / "search.py", str(at_a_time),
            json.dumps({instance: name == "test_right" for instance, name in asked.items()}))


@pytest.fixture(scope="session")
def found(request: pytest.FixtureRequest) -> dict[str, tuple[int, str]]:
    """Of each instance: how many errors, and what spin's verifier said."""
    run = request.config.stash[SEARCHES]
    said, problems = run.communicate(timeout=1200)
    assert run.returncode == 0, problems
    return json.loads(said)
