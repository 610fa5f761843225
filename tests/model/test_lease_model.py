"""The lease's model, searched by spin: right as it stands, and wrong with each mistake put in.

Knows: the instances of lease.pml that end within seconds. `run.sh deep` has the larger ones. Never sees: how spin is
run (search.py), and when (conftest.py).
"""

import re
import shutil

import pytest

pytestmark = pytest.mark.last
Found = dict[str, tuple[int, str]]

for _tool in ("spin", "gcc"):
    if shutil.which(_tool) is None:
        pytest.skip(f"{_tool} is not installed", allow_module_level=True)

ONE = "FIRST=1"
TWO = "FIRST=1 LEASES=2 NO_GIL SHARP INDEPENDENT NEVER_FIRST"
ALONE = "FIRST=1 LEASES=2 WORKERS=1 NO_GIL INDEPENDENT NEVER_FIRST"      # one worker for two reactors
SKEWED = "FIRST=1 LEASES=2 NO_GIL SHARP NEVER_FIRST SKEWED EAGER"        # the other one idles where nothing is
SHUT = "FIRST=1 CONNS=1 CLOSING"

RIGHT = {
    "one reactor": f"{ONE} EAGER",
    "pipelined, one connection": "FIRST=2 CONNS=1 INDEPENDENT",
    "two reactors, one worker": ALONE,
    "two reactors come to rest": f"{ALONE} SHARP REST",
    "two reactors, everything is answered": f"{ALONE} SHARP LIVENESS",
    "closing": f"{SHUT} EAGER",
}

MISTAKES = {
    "a plain flag instead of numbers": f"{ONE} PLAIN_FLAG",
    "numbers that two reactors share": f"{TWO} SAME_NUMBERS",
    "waiting while another reactor is hungry": f"{ALONE} WAITS_WHILE_WANTED",
    "hungry only after the turn that follows a seizure": f"{SKEWED} HUNGERS_AT_THE_END_OF_A_TURN",
    "hungry in silence": f"{ALONE} HUNGERS_WITHOUT_A_POKE",
    "falling asleep with the lease in hand": f"{ALONE} RESTS_WITHOUT_LOOKING",
    "taking a worker that others need": f"{ALONE} SHARP LIVENESS TAKES_WITHOUT_NEED",
    "leases that go round": f"{ALONE} SHARP REST TAKES_WITHOUT_NEED",
    "taking back with a store": f"{ONE} TAKES_BACK_WITH_A_STORE",
    "`asleep` loaded before the word is stored": f"{ONE} LOADS_BEFORE_STORE",
    "parking without a poke": f"{ONE} PARKS_WITHOUT_A_POKE",
    "the watcher holds before it says so": f"{ONE} HOLDS_LATE",
    "the watcher gives while somebody waits for the GIL": f"{ONE} GIVES_TO_ANYBODY",
    "sending beside the seizer": f"{ONE} WAITS_FOR_NO_LET_GO",
    "coming home beside a watcher that sleeps": f"{ONE} LOOKS_AT_NO_WATCHER",
    "falling asleep beside an inbox": f"{ONE} RESTS_BESIDE_AN_INBOX",
    "asking for a closed lease": f"{SHUT} ASKS_WITHOUT_LOOKING",
    "asking the clock of a holder that is the watcher": f"{SHUT} ASKS_ANYBODY",
}


@pytest.mark.parametrize("instance", RIGHT.values(), ids=RIGHT.keys())
def test_right(found: Found, instance: str) -> None:
    errors, said = found[instance]
    assert errors == 0, said
    print(re.search(r"[\d.e+]+ states, stored", said)[0], re.search(r"elapsed time.*", said)[0])


@pytest.mark.parametrize("instance", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_caught(found: Found, instance: str) -> None:
    errors, said = found[instance]
    assert errors == 1, said
