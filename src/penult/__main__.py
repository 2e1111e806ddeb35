"""`python -m penult`: the command line, as `penult` starts it."""

from penult.cli import main

if __name__ == "__main__":
    main()
