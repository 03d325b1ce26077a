"""Paths as they were: ``lightning_prune.metrics`` and others, whose names lie in rooms now.

The package looks for its modules here too, so that ``from lightning_prune.inspection import inspect_file`` goes on.
"""

from __future__ import annotations

__all__: list[str] = []
