"""What `fastserve` serves when it is started without a handler: one page that says that it works.

Knows: the public ctx only. Never sees: the server or its settings.
Invariant: "/" is 200, every other path is 404.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastserve import RequestCtx

__all__ = ["handler"]

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>fastserve works</title>
<style>body { font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto }</style>
<h1>fastserve works</h1>
<p>This page is built in. To serve your own, save this as <code>app.py</code>:</p>
<pre>
from fastserve import RequestCtx

def handler(ctx: RequestCtx) -> None:
    if ctx.path == "/":
        ctx.content_type = "text/plain; charset=utf-8"
        ctx.write("Hello, World!\\n")
    elif ctx.path == "/echo":
        ctx.write(ctx.body)
    else:
        ctx.not_found()
</pre>
<p>and start it with <code>fastserve app:handler</code>; <code>fastserve --help</code> lists the options.</p>
</html>
"""


def handler(ctx: "RequestCtx") -> None:
    """Serve the page at "/", 404 elsewhere."""
    if ctx.path == "/":
        ctx.content_type = "text/html; charset=utf-8"
        ctx.write(PAGE)
    else:
        ctx.not_found()
