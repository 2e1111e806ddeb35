"""`python -m penult`: the command line, as `penult` starts it."""

import sys

from penult.cli import main

if __name__ == "__main__":
    sys.argv[0] = "penult"  # as runs record the command
    main()
