"""The workflows, pre-commit, the Makefile and pyproject.toml say the same."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = {
    target
    for line in re.findall(r"^([a-z][a-z -]*):(?!=)(?! \w+ :=)", MAKEFILE, re.MULTILINE)
    for target in line.split()
}
CLASSIFIED = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", line)]
JOBS = {(workflow, name): job for workflow, content in WORKFLOWS.items() for name, job in content["jobs"].items()}


def rows_of(job):
    """Every combination of a job's matrix."""
    matrix = dict(job.get("strategy", {}).get("matrix", {}))
    rows = [dict(row) for row in matrix.pop("include", [])]
    for key, values in matrix.items():
        rows = [{**row, key: value} for row in rows or [{}] for value in values]
    return rows or [{}]


def filled(text, row):
    return re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda found: str(row[found[1]]), text)


def commands_of(job):
    return [filled(step["run"], row) for row in rows_of(job) for step in job["steps"] if "run" in step]


def pythons_of(job):
    chosen = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    return [filled(version, row) for version in chosen for row in rows_of(job)]


def recipe_of(target):
    return re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]


def lowest(name):
    """The lower bound of a package that the library needs."""
    (requirement,) = [wanted for wanted in map(Requirement, PROJECT["dependencies"]) if wanted.name == name]
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return bound


def test_there_are_a_workflow_of_checks_and_a_workflow_of_releases():
    assert sorted(WORKFLOWS) == ["check.yml", "release.yml"]


@pytest.mark.parametrize(("workflow", "name"), JOBS)
def test_a_job_runs_make_targets_and_nothing_else(workflow, name):
    for command in commands_of(JOBS[workflow, name]):
        called = re.fullmatch(r'make ([a-z-]+)( TAG="\$GITHUB_REF_NAME")?', command)
        assert called, command
        assert called[1] in TARGETS, f"{workflow} calls make {called[1]}, which the Makefile has not"


def test_every_check_that_make_offers_is_run():
    run = {command.split()[1] for job in JOBS.values() for command in commands_of(job)}
    offered = {target for target in TARGETS if target.startswith("test") or target in {"lint", "demo", "docs"}}
    assert offered <= run


def test_tests_run_on_the_versions_of_python_that_the_package_is_classified_for():
    assert pythons_of(JOBS["check.yml", "test"]) == CLASSIFIED
    for job in JOBS.values():
        assert set(pythons_of(job)) <= set(CLASSIFIED)
    assert PROJECT["requires-python"] == f">={CLASSIFIED[0]}"


def test_the_oldest_versions_are_those_of_pyproject():
    recipe = re.search(r"^test-oldest test-newest:\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    assert re.search(r"^test-oldest: RESOLUTION := lowest-direct$", MAKEFILE, re.MULTILINE)
    assert re.search(r"^test-newest: RESOLUTION := highest$", MAKEFILE, re.MULTILINE)
    assert '--resolution $(RESOLUTION) --editable ".[dev]"' in recipe
    assert "constraint" not in recipe  # pinned versions are neither
    pythons = {row["target"]: row["python"] for row in rows_of(JOBS["check.yml", "versions"])}
    assert pythons["test-oldest"] == CLASSIFIED[0]
    assert pythons["test-newest"] == CLASSIFIED[-1]


@pytest.mark.parametrize("name", ["lightning", "torch"])
def test_the_readme_states_the_lower_bounds_of_pyproject(name):
    stated = re.search(rf"{name} from ([0-9.]+\d) on", (ROOT / "README.md").read_text(), re.IGNORECASE)
    assert stated, f"README.md must say from which {name} on the library works"
    assert stated[1] == lowest(name)


@pytest.mark.parametrize(
    "extra", [None, *PROJECT["optional-dependencies"]], ids=lambda extra: extra or "without an extra"
)
def test_every_package_has_a_lower_bound(extra):
    listed = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, listed):
        is_own = requirement.name == PROJECT["name"]
        assert is_own or any(part.operator == ">=" for part in requirement.specifier), requirement


@pytest.mark.parametrize(("workflow", "name"), JOBS)
def test_actions_are_pinned_to_a_major_version(workflow, name):
    for step in JOBS[workflow, name]["steps"]:
        if "uses" in step:
            assert re.fullmatch(r"(actions/[\w-]+@v\d+|pypa/[\w-]+@release/v\d+)", step["uses"])


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_a_workflow_may_read_and_only_publishing_may_more(workflow):
    content = WORKFLOWS[workflow]
    assert content["permissions"] == {"contents": "read"}
    allowed = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    assert allowed == ({"publish": {"id-token": "write"}} if workflow == "release.yml" else {})
    assert "secrets" not in (ROOT / ".github" / "workflows" / workflow).read_text()
    for job in content["jobs"].values():
        assert job["timeout-minutes"] <= 90
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"] == {"persist-credentials": False}


def test_a_release_is_built_and_tried_before_it_is_published():
    build, publish = JOBS["release.yml", "build"], JOBS["release.yml", "publish"]
    assert commands_of(build) == ['make test-wheel TAG="$GITHUB_REF_NAME"']
    assert publish["needs"] == "build"
    assert not commands_of(publish)


def test_pre_commit_runs_what_make_lint_runs():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in config["repos"]] == ["local"]  # nothing is fetched
    hooks = [hook["entry"] for repository in config["repos"] for hook in repository["hooks"]]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe_of("lint").splitlines()]
    assert hooks == commands


def test_make_knows_every_target_and_says_what_each_is_for():
    printed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    told = re.findall(r"^make ([a-z-]+) ", printed, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert set(told) <= TARGETS
    assert TARGETS - set(told) == {"help", "clean", "lint"}
    assert set(phony) == TARGETS
