"""Becomes nginx with nginx.conf, at a port: nginx.py PORT. Knows where Debian puts it; nothing of the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROGRAM = "/usr/sbin/nginx"
HERE = Path(__file__).resolve().parent
PREFIX = HERE.parent / "build" / "nginx"


def become(port: str) -> None:
    PREFIX.mkdir(parents=True, exist_ok=True)
    (PREFIX / "nginx.conf").write_text((HERE / "nginx.conf").read_text().replace("PORT", port))
    os.execv(PROGRAM, ["nginx", "-p", str(PREFIX), "-c", "nginx.conf"])


if __name__ == "__main__":
    become(sys.argv[1])
