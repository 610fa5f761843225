"""The smallest server: one handler that looks at the path and at one argument of the query.

    python examples/hello.py                        # on 127.0.0.1:8000; as arguments other addresses
    fastserve examples.hello:handler                # the same by the command

    curl 'http://127.0.0.1:8000/?name=Ada'
"""

import sys

from fastserve import RequestCtx, Server


def handler(ctx: RequestCtx) -> None:
    if ctx.path == "/":
        ctx.write(f"Hello, {ctx.query.get('name', 'World')}!\n")
    else:
        ctx.not_found()


if __name__ == "__main__":
    # Blocks until Ctrl-C or TERM, and then until those who are being served have their replies.
    Server(handler).serve(*sys.argv[1:], ready=lambda server: print(f"http://{server.addresses[0]}", flush=True))
