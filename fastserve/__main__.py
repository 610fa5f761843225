"""`python -m fastserve`: the same as the console script `fastserve`.

Knows: the entry point. Never sees: anything else. Invariant: the exit status is what `main` returns.
"""

import sys

from fastserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
