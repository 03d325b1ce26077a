"""Are the files of a release complete? ``python tools/check_dist.py dist [TAG]``, which ``make dist`` calls.

The source distribution must hold every file that git has and nothing else; the wheel the package alone. With a tag, it
must be that of the version, and CHANGELOG.md must say when the version was released.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def tracked_files(*folders: str) -> set[str]:
    """Paths of the files that git has, from the root of the repository."""
    command = ["git", "ls-files", "-z", "--", *folders]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {name for name in names.split("\0") if name}


def compare(what: str, held: set[str], wanted: set[str]) -> list[str]:
    """What is missing in a file of the release, and what should not be there, as sentences."""
    missing = [f"{what} lacks {name}" for name in sorted(wanted - held)]
    return missing + [f"{what} holds {name}, which git has not" for name in sorted(held - wanted)]


def check_source(path: Path) -> list[str]:
    """Compare a source distribution with what git has."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    return compare(path.name, names - {"PKG-INFO"}, tracked_files())


def check_wheel(path: Path) -> list[str]:
    """Compare a wheel with the package that git has."""
    with zipfile.ZipFile(path) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name and not name.endswith("/")}
    return compare(path.name, names, tracked_files("lightning_prune"))


def check_tag(tag: str, version: str, changelog: str) -> list[str]:
    """Is a tag that of the version, and is the version dated in the changelog?"""
    problems = []
    if tag != f"v{version}":
        problems.append(f"the tag must be v{version}, got {tag}")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE):
        problems.append(f"CHANGELOG.md must have the heading '## [{version}] - YYYY-MM-DD'")
    return problems


def main(folder: Path, tag: str | None = None) -> int:
    """Check the one source distribution and the one wheel of a folder; the exit code."""
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    version = source.name.removeprefix("lightning_prune-").removesuffix(".tar.gz")
    problems = check_source(source) + check_wheel(wheel)
    if wheel.name != f"lightning_prune-{version}-py3-none-any.whl":
        problems.append(f"{wheel.name} must have the version of {source.name} and run everywhere")
    if tag is not None:
        problems += check_tag(tag, version, (ROOT / "CHANGELOG.md").read_text())
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"{source.name} and {wheel.name} are complete")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:3]))
