"""`python -m kvcalc`."""

from kvcalc.cli import main

if __name__ == "__main__":
    main()
