"""A static site: files by sendfile, compressed once and for all, and one page beside them that is made each time.

    python examples/static_site.py                  # on 127.0.0.1:8000; as arguments other addresses

    curl -i --compressed http://127.0.0.1:8000/
    curl -i -r 0-99 http://127.0.0.1:8000/style.css
    curl -i --compressed http://127.0.0.1:8000/files.json

The site is the directory `site` beside this file. ETag, conditions and ranges come with `StaticFiles`.
"""

import gzip
import shutil
import sys
import tempfile
from pathlib import Path

from fastserve import RequestCtx, Router, Server, StaticFiles, compress

SITE = Path(__file__).parent / "site"


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def publish(source: Path, target: Path) -> None:
    """What a build does: a copy of the site, with `name.gz` beside each file that becomes smaller by it."""
    shutil.copytree(source, target)
    for path in files_of(target):
        packed = gzip.compress(path.read_bytes())
        if len(packed) < path.stat().st_size:
            path.with_name(path.name + ".gz").write_bytes(packed)


def site(root: Path) -> Router:
    files = StaticFiles(root, precompressed=True)

    def page(ctx: RequestCtx) -> None:
        # A 404 starts the reply anew and forgets this.
        ctx.set_header("Cache-Control", "public, max-age=300")
        files(ctx)

    def listing(ctx: RequestCtx) -> None:
        ctx.write_json([{"path": f"/{path.relative_to(root)}", "size": path.stat().st_size}
                        for path in files_of(root) if path.suffix != ".gz"])

    router = Router()
    router.get("/{name:path}", page)
    router.get("/files.json", compress(listing, minimum=100))
    return router


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        publish(SITE, Path(place, "site"))
        server = Server(site(Path(place, "site")))
        server.serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
