"""A page as HTML: one file that needs no other, whose every text is escaped."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from lightning_prune.basics import printable
from lightning_prune.page.charts import Chart, chart_of
from lightning_prune.page.contents import Curve, MaskPicture, RunPage

__all__ = ["SIGN", "render_page"]

SIGN = '<meta name="generator" content="lightning-prune page">'
MOST_ROWS = 1000  # of a table
_PICTURE_WIDTH = 216  # pixels of a screen


def render_page(page: RunPage) -> str:
    """Write a page as HTML.

    It opens from a file and asks for nothing else: styles, script and pictures are within it, and its
    Content-Security-Policy lets a browser load nothing and run no script but that one.

    Args:
        page: What it shows.
    """
    # loaded when it is needed: torch brings it along
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("lightning_prune.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_as_text,
    )
    environment.filters |= {"percent": _percent, "nbytes": _nbytes, "size": _size, "share": _share}
    script, style = (environment.get_template(name).render() for name in ("run.js", "run.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("run.html.jinja").render(
        page=page,
        sign=Markup(SIGN),
        script=Markup(script),
        style=Markup(style),
        digest=digest,
        charts=_charts(page),
        scores=[(name, curve) for name, curve in page.metrics.items() if curve.steps and _is_score(name)][:2],
        pictures=[_picture(mask) for mask in page.masks],
        most=MOST_ROWS,
    )


def _charts(page: RunPage) -> list[Chart]:
    """Sparsity, and each metric that was logged."""
    curves = [page.planned, page.actual, *page.metrics.values()]
    last = max((curve.steps[-1] for curve in curves if curve.steps), default=1)
    mark = _target_step(page.planned)
    sparsity = chart_of(
        "Sparsity over optimizer steps",
        {"planned": page.planned, "actual": page.actual},
        last_step=last,
        is_fraction=True,
        is_stepped=True,
    )
    logged = [
        chart_of(name, {name: curve}, last_step=last, mark=None if mark is None else (mark, "target reached"))
        for name, curve in page.metrics.items()
    ]
    return [chart for chart in (sparsity, *logged) if chart is not None]


def _is_score(name: str) -> bool:
    """Whether a metric belongs to the first things that a reader looks for: no loss, no learning rate."""
    return not any(part in name.lower() for part in ("loss", "lr", "learning"))


def _target_step(planned: Curve) -> int | None:
    """The step at which a planned curve comes to its last value."""
    reached = [step for step, value in zip(planned.steps, planned.values, strict=True) if value == planned.values[-1]]
    return reached[0] if reached else None


def _picture(mask: MaskPicture) -> dict[str, Any]:
    """A picture as the page shows it: each weight as whole pixels of a screen."""
    scale = max(1, _PICTURE_WIDTH // max(mask.size))
    data = base64.b64encode(mask.png).decode()
    return {"mask": mask, "data": data, "width": mask.size[0] * scale, "height": mask.size[1] * scale}


def _as_text(value: Any) -> Any:
    """Texts without what steers a browser's direction of writing, or what cannot be shown."""
    return printable(value) if type(value) is str else value


def _percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}%}"


def _share(part: float, whole: float) -> float:
    """A part of a whole, in percent, for the width of a bar."""
    return round(100 * part / whole, 2) if whole else 0.0


def _nbytes(count: int) -> str:
    """Bytes in the unit that is read at once."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:,.0f} {unit}"
    return f"{count} bytes"


def _size(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
