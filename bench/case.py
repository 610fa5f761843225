"""What a case is: a name, a run, a verdict.

Knows the words that the cases share; none of the cases, and nothing of how a server is started or timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from contenders import Contenders
from measure import Cores, Effort, Series

PASS, FAIL, SKIPPED, INVALID, MEASURED = "PASS", "FAIL", "SKIPPED", "INVALID", "MEASURED"


@dataclass(frozen=True)
class Bench:
    """What a case has to work with."""

    contenders: Contenders
    python: str
    cores: Cores
    effort: Effort
    names: frozenset[str] | None    # the contenders that the user asked for; None: all
    quick: bool


@dataclass
class Verdict:
    """How a case ended: its figure in words, the rounds behind it, and other numbers worth keeping.

    Of a table also who is not in it and why: who failed (in whose words), who cannot run here, who was left out.
    """

    state: str
    figure: str
    series: list[Series] = field(default_factory=list)
    numbers: Mapping[str, object] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    lacking: Mapping[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """`goal` is empty where its goals are rows of goals.py; `quick`: part of a quick run."""

    name: str
    title: str
    goal: str
    run: Callable[[Bench], Verdict]
    quick: bool = True
