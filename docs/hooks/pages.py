"""What the site takes from outside of docs/, and where a link to it leads.

The README is the home page; results of the benchmarks, examples and notebooks are pages as they lie in the repository.
Every page is written for a reader of the repository, with links by its paths; here they become links of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from notebooks import notebook_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

__all__ = ["on_config", "on_files", "on_page_markdown", "place_of", "relinked", "taken"]

ROOT = Path(__file__).parents[2]
FOLDERS = {"docs/": "", "benchmarks/results/": "benchmarks/", "examples/": "examples/"}
LISTS = {
    "benchmarks": "benchmarks/index.md",
    "benchmarks/results": "benchmarks/index.md",
    "examples": "examples/index.md",
}
CODE = {".py": "python", ".yaml": "yaml"}
LINK = re.compile(r"(?P<text>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s]+)\)")
FENCED = re.compile(r"(^ *(?:```|~~~).*?^ *(?:```|~~~) *$)", re.MULTILINE | re.DOTALL)


def place_of(path: str) -> str | None:
    """Where a file or folder of the repository lies on the site, or None where it has no page.

    Example:
        >>> place_of("README.md"), place_of("docs/scale.md"), place_of("examples/cli/train.py"), place_of("LICENSE")
        ('index.md', 'scale.md', 'examples/cli/train.md', None)
    """
    if path.rstrip("/") in LISTS:
        return LISTS[path.rstrip("/")]
    if path == "README.md":
        return "index.md"
    if "/" not in path:
        return path.lower() if path.endswith(".md") else None
    for folder, place in FOLDERS.items():
        if path.startswith(folder):
            stem, suffix = posixpath.splitext(path.removeprefix(folder))
            is_code = suffix in CODE or suffix == ".ipynb"
            return place + stem + (".md" if is_code else suffix)
    return None


def taken() -> Iterator[Path]:
    """The files outside of docs/ that the site has."""
    yield from sorted(ROOT.glob("*.md"))
    yield from sorted((ROOT / "benchmarks" / "results").glob("*.*"))
    for suffix in (*CODE, ".ipynb"):
        yield from sorted(
            path for path in (ROOT / "examples").rglob(f"*{suffix}") if ".ipynb_checkpoints" not in path.parts
        )


def relinked(markdown: str, source: str) -> str:
    """The text of a page with links by paths of the repository turned into links of the site.

    A file of the repository that has no page is named without a link; what is not there keeps its link, and is a
    warning of MkDocs.

    Args:
        markdown: The text.
        source: The path of its file in the repository.

    Example:
        >>> relinked("[scale](docs/scale.md#strategies), [license](LICENSE), [torch](https://pytorch.org)", "README.md")
        '[scale](scale.md#strategies), license, [torch](https://pytorch.org)'
    """
    here = posixpath.dirname(place_of(source) or "")

    def turned(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        place = place_of(path)
        if place is None:
            return match["text"].strip("![]") if (ROOT / path).exists() else match[0]
        return f"{match['text']}({posixpath.relpath(place, here or '.')}{'#' + anchor if anchor else ''})"

    parts = FENCED.split(markdown)
    return "".join(part if index % 2 else LINK.sub(turned, part) for index, part in enumerate(parts))


def on_config(config: MkDocsConfig) -> None:
    """Put all pages of a folder that the nav names with a slash at its end into it."""
    for entry in config.nav or ():
        for title, place in entry.items():
            if isinstance(place, str) and place.endswith("/"):
                first = [] if place == "/" else [f"{place}index.md"]
                entry[title] = [*first, *_listed(place)]


def _listed(folder: str) -> list[dict[str, str]]:
    """The pages of a folder of the site that are made of files outside of docs/, by their titles; "/" is the top."""
    found = []
    for path in taken():
        place = place_of(path.relative_to(ROOT).as_posix()) or ""
        is_in_it = place.startswith(folder) if folder != "/" else "/" not in place and place != "index.md"
        if is_in_it and place.endswith(".md"):
            title = path.read_text().split("\n")[0].removeprefix("# ") if path.suffix == ".md" else path.name
            found.append({title: place})
    return sorted(found, key=lambda entry: not next(iter(entry)).endswith(".ipynb"))  # the notebooks first


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/."""
    from mkdocs.structure.files import File

    for path in taken():
        source = path.relative_to(ROOT).as_posix()
        content: Any = path.read_bytes()
        if path.suffix == ".md":
            content = relinked(content.decode(), source)
        elif path.suffix == ".ipynb":
            content = relinked(notebook_page(content.decode()), source)
        elif path.suffix in CODE:
            content = f"# {source}\n\n```{CODE[path.suffix]}\n{content.decode()}```\n"
        files.append(File.generated(config, place_of(source) or "", content=content))
    for place, text in (("benchmarks/index.md", _measured()), ("examples/index.md", _examples())):
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn the links of a page of docs/; pages of code beside code get the whole width."""
    if page.file.src_uri.startswith("coming-from/"):
        page.meta.setdefault("hide", ["toc"])
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{page.file.src_uri}")


def _measured() -> str:
    lines = ["# Measured", "", "What the benchmarks wrote, each with the command that made it.", ""]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        text = path.read_text()
        command = re.search(r"^`python -m [^`]*`$", text, re.MULTILINE)
        title = text.split("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})" + (f": {command[0]}" if command else ""))
    return "\n".join(lines)


def _examples() -> str:
    lines = ["# Examples", "", "Each file runs from a clone, as its first lines say.", ""]
    for entry in _listed("examples/"):
        for name, place in entry.items():
            (path,) = (path for path in taken() if place_of(path.relative_to(ROOT).as_posix()) == place)
            text = notebook_page(path.read_text()) if path.suffix == ".ipynb" else path.read_text()
            first = text.split("\n")[0].strip('"# ')
            lines.append(f"- [{name}]({place.removeprefix('examples/')}): {first}")
    return "\n".join(lines)
