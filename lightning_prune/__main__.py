"""The command line, as ``python -m lightning_prune``."""

from lightning_prune.cli import main

raise SystemExit(main())
