"""What a result depends on and cannot be repeated without: the machine and the versions.

Knows where the kernel and the tools say so.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

from contenders import Contenders, output
from measure import BenchError, Cores
from rivals import environment


def machine(cores: Cores) -> dict:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "server_core": cores.server,
        "load_core": cores.load,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def versions(contenders: Contenders) -> dict:
    facts = contenders.python_facts
    return {
        "fastserve": facts["fastserve"],
        "commit": _said("git", "describe", "--always", "--dirty"),
        "python": facts["version"] + (" free-threaded" if facts["free_threaded"] else ""),
        "wrk": _wrk(),
        "gcc": _said("gcc", "-dumpfullversion"),
        "go": _said("go", "env", "GOVERSION"),
        "fasthttp": _said("dpkg-query", "-W", "-f", "${Version}", "golang-github-valyala-fasthttp-dev"),
        "nginx": _said("dpkg-query", "-W", "-f", "${Version}", "nginx"),
        **environment.versions(),
    }


def _said(*command: str) -> str | None:
    try:
        return output(command)
    except BenchError:
        return None


def _wrk() -> str:
    """wrk tells its version with status 1."""
    words = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.split()
    return words[1]
