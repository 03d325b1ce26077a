"""A run as a single page of HTML: what it shows, how it is drawn, where it is written, and how a past run is read."""

from __future__ import annotations

from lightning_prune.page.contents import Curve, DenseRow, LayerRow, MaskPicture, RunPage
from lightning_prune.page.gathering import gather_page, now, planned_curve
from lightning_prune.page.history import History
from lightning_prune.page.reading import read_run
from lightning_prune.page.rendering import render_page
from lightning_prune.page.writing import check_page_path, page_path, write_page

__all__ = [
    "Curve",
    "DenseRow",
    "History",
    "LayerRow",
    "MaskPicture",
    "RunPage",
    "check_page_path",
    "gather_page",
    "now",
    "page_path",
    "planned_curve",
    "read_run",
    "render_page",
    "write_page",
]
