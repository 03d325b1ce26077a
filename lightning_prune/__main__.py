"""The command line, as ``python -m lightning_prune``."""

from lightning_prune.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
