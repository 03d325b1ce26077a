"""A page as HTML: what it shows, that no text of a user becomes a script, and that it stays small."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from page_parts import HOSTILE, make_export, make_page, make_slim

from lightning_prune import ConfigError, MagnitudePrunerConfig
from lightning_prune.page import (
    Curve,
    DenseRow,
    LayerRow,
    RunPage,
    check_page_path,
    page_path,
    render_page,
    write_page,
)
from lightning_prune.page.gathering import mask_pictures

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Reads a page strictly: every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(page: RunPage) -> Reader:
    reader = Reader()
    reader.feed(render_page(page))
    reader.close()
    assert reader.open == []
    return reader


def test_a_page_shows_what_was_pruned_and_how_to_do_it_again():
    page = make_page()
    text = read(page).text
    for part in (
        "Net Finished after 8 optimizer steps.",
        "sparsity 75.0% of 728 weights",
        "accuracy 0.875",
        "0.weight 8 × 3 × 3 × 3",
        "target_sparsity: 0.75",
        "torch ",
    ):
        assert part in text, part
    assert MagnitudePrunerConfig.from_yaml(page.configuration) == MagnitudePrunerConfig(
        {"scheduler": {"update_steps": [2, 4, 6]}, "target_sparsity": 0.75}
    )


def test_slimming_and_exports_are_shown_with_their_proofs():
    slim, export = make_slim(), make_export()
    failed = ("The export to b.onnx: no such op",)
    text = read(make_page(slim=slim, exports=(export,), failures=failed)).text
    for part in (
        f"{slim.parameters:,} before {slim.slim_parameters:,} after",
        f"largest difference {slim.difference:.1e}",
        slim.checks[0],
        "2.00× smaller",
        "1 of 1 pruned parameters is stored sparse",
        "not checked: the state of an LSTM",
        "largest error of an output on inputs like the example: 2.0e-04",
        "Failed: The export to b.onnx: no such op",
    ):
        assert part in text, part


def test_what_is_not_known_is_left_out():
    reader = read(RunPage("Net", "A file of weights."))
    for heading in ("Over the run", "Layers", "Masks", "Slim network", "Exports"):
        assert heading not in reader.text
    assert not [tag for tag, _ in reader.tags if tag in ("table", "svg", "img", "pre")]


def test_a_page_asks_for_nothing_outside_of_it():
    html = render_page(make_page(slim=make_slim(), exports=(make_export(),)))
    reader = Reader()
    reader.feed(html)
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert not re.search(r"https?:|@import|url\(", html)
    (policy,) = [tag["content"] for _, tag in reader.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def hostile_page() -> RunPage:
    page = make_page(slim=make_slim())
    (layer, *_), (mask, *_) = page.layers, page.masks
    return dataclasses.replace(
        page,
        title=HOSTILE,
        status=HOSTILE,
        layers=(dataclasses.replace(layer, name=HOSTILE, structure=HOSTILE),),
        dense=(DenseRow((HOSTILE,), HOSTILE, HOSTILE),),
        metrics={HOSTILE: Curve((1, 2), (0.5, 0.6))},
        masks=(dataclasses.replace(mask, name=HOSTILE),),
        slim=dataclasses.replace(page.slim, checks=(HOSTILE,), pinned={HOSTILE: 3}),
        exports=(
            make_export(HOSTILE, path=Path(HOSTILE), checks=(HOSTILE,), notes=(HOSTILE,), not_checked=(HOSTILE,)),
        ),
        failures=(HOSTILE,),
        notes=(HOSTILE,),
        versions={HOSTILE: HOSTILE},
        configuration=HOSTILE,
    )


def test_no_text_becomes_a_script_or_an_attribute():
    tame, reader = read(make_page()), read(hostile_page())
    assert [tag for tag, _ in reader.tags].count("script") == [tag for tag, _ in tame.tags].count("script") == 1
    assert not [attributes for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    assert {attributes["src"][:10] for tag, attributes in reader.tags if tag == "img"} == {"data:image"}
    assert reader.text.count("onerror") >= 14  # of each it is shown as a text


def test_letters_that_turn_the_direction_of_writing_are_shown_as_escapes():
    html = render_page(RunPage(f"a{chr(0x202E)}b", "", layers=(LayerRow(chr(7), (1,), "", None, 0, 1, 1, 0),)))
    assert chr(0x202E) not in html
    assert r"a\u202eb" in html
    assert chr(7) not in html


def many_rows(page: RunPage, count: int) -> RunPage:
    """A page with so many rows in every table, and a mask of random zeros for each layer."""
    names = [f"encoder.layers.{at}.feed_forward.linear.weight" for at in range(count)]
    masks = ((name, torch.rand(96, 96) < 0.25, (96, 96)) for name in names)
    pictures, more = mask_pictures(masks)
    (layer, *_), (stored,), slim = page.layers, make_export().layers, make_slim()
    export = make_export(layers=tuple(dataclasses.replace(stored, name=name) for name in names))
    slim_rows = tuple(dataclasses.replace(slim.layers[0], name=name) for name in names)
    return dataclasses.replace(
        page,
        layers=tuple(dataclasses.replace(layer, name=name) for name in names),
        masks=pictures,
        more_masks=more,
        exports=(export, export),
        slim=dataclasses.replace(slim, layers=slim_rows),
    )


def test_a_page_of_200_layers_is_whole_and_under_2_megabytes():
    page = many_rows(make_page(), 200)
    html = render_page(page)
    assert len(html.encode()) < 2_000_000
    assert html.count("data:image/png") == len(page.masks) == 200
    assert "rows are not shown" not in html


def test_a_page_of_1500_layers_says_what_it_leaves_out_and_is_under_2_megabytes():
    page = many_rows(make_page(), 1500)
    html = render_page(page)
    assert len(html.encode()) < 2_000_000
    assert 200 < len(page.masks) == 1500 - page.more_masks
    assert f"{page.more_masks} more masks are not drawn." in html
    assert html.count("500 more rows are not shown.") == 4


def test_a_page_replaces_a_page_and_nothing_else(tmp_path):
    path = page_path(tmp_path / "made" / "run.html")
    for title in ("First", "Second"):
        write_page(RunPage(title, ""), path)
        assert f"<h1>{title}</h1>" in path.read_text()
    assert [file.name for file in path.parent.iterdir()] == ["run.html"]
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    (tmp_path / "link.html").symlink_to(path)
    for name in ("mine.html", "link.html"):
        with pytest.raises(ConfigError, match=f"page must be free or hold the page of another run, but .*{name}"):
            write_page(RunPage("Third", ""), tmp_path / name)
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert "Second" in path.read_text()


def test_a_path_that_cannot_work_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"must lie in a folder that can be written to, but .*file cannot"):
        check_page_path(page_path(tmp_path / "file" / "run.html"))
    with pytest.raises(ConfigError, match=r"page must end in .html, got 'run.txt'. Write 'run.html'"):
        page_path("run.txt")
    with pytest.raises(ConfigError, match=r"page must be a path that ends in .html, got True"):
        page_path(True)
    assert not (tmp_path / "deep").exists()
    check_page_path(page_path(tmp_path / "deep" / "er" / "run.html"))
    assert not (tmp_path / "deep").exists()
