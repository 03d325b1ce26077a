"""A page in a headless browser: it sorts, prints, runs no script but its own, and is not wider than a phone."""

from __future__ import annotations

import base64
import hashlib
import re
from html import unescape

import pytest
from page_parts import HOSTILE, browse, make_export, make_page, make_slim

from lightning_prune.page import LayerRow, RunPage, render_page

ROWS = (("b", 30, 0.5), ("a10", 4, 0.25), ("a9", 200, 0.75))
LAYERS = tuple(
    LayerRow(name, (weights,), "per_scalar", None, int(s * weights), weights, 1, 0) for name, weights, s in ROWS
)


def with_script(html: str, more: str) -> str:
    """The page with more at the end of its own script, which the policy is told of."""
    (script,) = re.findall(r"<script>(.*)</script>", html, re.DOTALL)
    longer = script + more
    for old, new in ((script, longer), (digest(script), digest(longer))):
        assert html.count(old) == 1
        html = html.replace(old, new)
    return html


def digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def title_of(dom: str) -> str:
    """What the window is called; pictures have titles of their own, further down."""
    return unescape(dom.partition("<title>")[2].partition("</title>")[0])


def look(tmp_path, html: str) -> str:
    """The document as the browser has it when the page is loaded."""
    (tmp_path / "run.html").write_text(html, encoding="utf-8")
    return browse(tmp_path / "run.html", tmp_path, "--dump-dom")


def test_a_table_sorts_by_the_column_that_is_clicked(tmp_path):
    clicks = """
    const heads = [...document.querySelectorAll("table.sorts thead button")];
    const names = () => [...document.querySelectorAll("table.sorts tbody th")].map((cell) => cell.textContent).join();
    const orders = [names()];
    for (const column of [0, 0, 1, 1, 4]) { heads[column].click(); orders.push(names()); }
    orders.push(document.querySelector("[aria-sort]").textContent.trim());
    document.title = orders.join(" ");
    """
    dom = look(tmp_path, with_script(render_page(RunPage("Net", "", layers=LAYERS)), clicks))
    assert title_of(dom) == "b,a10,a9 a9,a10,b b,a10,a9 a9,b,a10 a10,b,a9 a9,b,a10 weights"


def test_a_browser_runs_no_script_of_a_name_and_none_that_was_put_in(tmp_path):
    page = make_page(exports=(make_export(HOSTILE),), title=HOSTILE, status=HOSTILE, configuration=HOSTILE)
    html = render_page(page).replace("</main>", '</main><script>document.title = "run"</script>')
    dom = look(tmp_path, html)
    assert 'document.title = "run"' in dom
    assert title_of(dom).startswith(HOSTILE)
    assert "<img src=" not in dom


def test_a_page_is_not_wider_than_a_phone(tmp_path):
    width = 390
    layers = (*LAYERS, LayerRow("encoder." * 20 + "weight", (3, 3), "per_scalar", 0.5, 4, 9, 3, 0))
    page = make_page(layers=layers, slim=make_slim(), exports=(make_export("a_" * 60),), failures=("x" * 300,))
    measure = """
    for (const each of document.querySelectorAll("details")) each.open = true;
    parent.postMessage(document.documentElement.scrollWidth, "*");
    """
    (tmp_path / "page.html").write_text(with_script(render_page(page), measure), encoding="utf-8")
    # a window of a headless browser is at least 500 pixels wide; a frame is as narrow as it is told
    frame = f"""<title></title><script>onmessage = (event) => document.title = event.data</script>
    <iframe src="page.html" style="width:{width}px; height:900px; border:0"></iframe>"""
    (tmp_path / "frame.html").write_text(frame)
    dom = browse(tmp_path / "frame.html", tmp_path, "--dump-dom", "--hide-scrollbars", "--virtual-time-budget=3000")
    assert title_of(dom) == str(width)


def test_a_page_can_be_drawn_and_printed(tmp_path):
    (tmp_path / "run.html").write_text(render_page(make_page(slim=make_slim())), encoding="utf-8")
    browse(tmp_path / "run.html", tmp_path, f"--screenshot={tmp_path / 'run.png'}", "--window-size=1200,2400")
    browse(tmp_path / "run.html", tmp_path, f"--print-to-pdf={tmp_path / 'run.pdf'}")
    assert (tmp_path / "run.pdf").read_bytes().startswith(b"%PDF")
    image = pytest.importorskip("PIL.Image").open(tmp_path / "run.png").convert("RGB")
    colors = {color for _, color in image.getcolors(2**24)}
    assert {(245, 247, 249), (0, 128, 200)} <= colors  # the page, and a weight that is kept


def test_a_page_is_dark_where_the_reader_wants_it_dark(tmp_path):
    (tmp_path / "run.html").write_text(render_page(make_page()), encoding="utf-8")
    dark = "--blink-settings=preferredColorScheme=0"
    browse(tmp_path / "run.html", tmp_path, dark, f"--screenshot={tmp_path / 'run.png'}", "--window-size=1200,2400")
    image = pytest.importorskip("PIL.Image").open(tmp_path / "run.png").convert("RGB")
    assert image.getpixel((2, 2)) == (15, 20, 25)
