"""One case of shapes.py, driven N and then 2N times between marks: what instructions.py runs under callgrind.

Knows: the driver and its marks. Never sees: who counts. Prints the system calls of the last run, a request, as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable

from micro import shapes

WARM_UP = 256       # requests: the interpreter has specialised its bytecode, every pool has been used
REQUESTS = 1024     # a multiple of what all clients of every case send at a time
POOLED = (48, 528)  # bytes of the blocks that Python keeps in pools, as far as bytes objects have them
HEAPED = 8192       # and up to here of those that it takes from malloc
POOL = 4 * 16384    # four pools of each size
BYTES_HEAD = 33     # of a bytes object
PARSER = "parser, browser's head"
CASES = [*(shape.name for shape in shapes.GATE), PARSER]


def driven(case: str) -> tuple[Callable[[int], None], Callable[[], None], Callable[[], dict[str, int]]]:
    """What runs N requests, what marks, and what tells of calls; replies are checked before."""
    if case == PARSER:
        import _words

        return lambda times: _words.parse(shapes.BROWSER, times), _words.mark, dict
    from fastserve import _core
    from fastserve.config import Config

    [shape] = [shape for shape in shapes.GATE if shape.name == case]
    config = Config(workers=2, reactors=1, io_uring=False, metrics_path="/metrics").resolved()
    driver = _core.Driver(shape.handler, config, shape.request, still=True, **shape.drive)
    shape.check(driver.reply)
    shape.check(driver.last(), shape.drive.get("burst", 1))
    return driver.run, _core.mark, driver.calls


def combed() -> list[object]:
    """Holes of every size between blocks that stay, to be held while somebody counts.

    What one request takes and gives back then always finds a hole. In a heap as it happens to lie, a block may be
    the last of its pool, or touch the free end of the heap, and cost some hundred instructions more each time.
    """
    blocks: list[object] = []
    for size in range(POOLED[0], POOLED[1], 16):
        blocks += [bytes(size - BYTES_HEAD) for _ in range(POOL // size)]
    for size in range(POOLED[1], HEAPED, 16):
        blocks += [bytes(size - BYTES_HEAD) for _ in range(8)]
    blocks += [object() for _ in range(POOL // 16)]
    blocks += [number + (1 << 20) for number in range(POOL // 32)]
    del blocks[::2]
    return blocks


def main() -> None:
    run, mark, calls = driven(sys.argv[1])
    gc.collect()
    gc.freeze()
    gc.disable()
    holes = combed()
    run(WARM_UP)
    mark()
    run(REQUESTS)
    mark()
    run(2 * REQUESTS)
    mark()
    del holes
    print(json.dumps({name: count / (2 * REQUESTS) for name, count in calls().items()}))


if __name__ == "__main__":
    main()
