"""What the package says of itself in several places is the same everywhere."""

import importlib.util
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import agebody

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
REPOSITORY = "https://example.org/owner/agebody"


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture
def hook(monkeypatch):
    """The build's hook, without the build's own package."""
    interface = SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def metadata(repository: str) -> dict:
        made: dict = {}
        it = module.Hook()
        it.root, it.config = str(ROOT), {"repository": repository}
        it.update(made)
        return made

    return metadata


def test_one_version():
    version = agebody.__version__
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert re.findall(r"version = \{(.+)\}", read("docs/citing.md")) == [version]
    newest = re.search(r"^## (\S+) \((?:unreleased|\d{4}-\d\d-\d\d)\)$", read("CHANGELOG.md"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
    assert os.environ.get("AGEBODY_TAG", f"v{version}") == f"v{version}"


@pytest.mark.parametrize("repository", ["", REPOSITORY])
def test_readme_of_the_index_has_no_paths(hook, repository):
    made = hook(repository)
    text = made["readme"]["text"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all(link.startswith(("https://", "#")) for link in links)
    assert "Quick start" in text
    ours = {link.removeprefix(REPOSITORY) for link in links if link.startswith(REPOSITORY)}
    here = {re.sub("^/(raw|blob)/main/", "", link).partition("#")[0] for link in ours}
    assert all((ROOT / path).is_file() for path in here)
    assert bool(ours) == bool(repository)
    assert ("![" in text) == bool(repository)
    assert made["urls"] == {} or all(url.startswith(REPOSITORY) for url in made["urls"].values())
    assert bool(made["urls"]) == bool(repository)


def test_table_of_extras():
    table = re.findall(r"^\| `(\w+)` \|", read("docs/installation.md"), re.MULTILINE)
    assert sorted(table) == sorted(PROJECT["project"]["optional-dependencies"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_targets_of_make(path):
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    runs = [step["run"].split() for job in jobs.values() for step in job["steps"] if "run" in step]
    assert runs
    for program, *words in runs:
        assert program == "make"
        assert {word for word in words if "=" not in word} <= targets


def test_workflows_test_every_python():
    matrix = yaml.safe_load(read(".github/workflows/tests.yml"))["jobs"]["fast"]["strategy"]["matrix"]
    classifiers = "\n".join(PROJECT["project"]["classifiers"])
    assert matrix["python"] == re.findall(r"Python :: (3\.\d+)$", classifiers, re.MULTILINE)


def test_pre_commit_hooks_run_existing_tools():
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    for hook in repository["hooks"]:
        words = [word for word in hook["entry"].split() if word.startswith("tests/")]
        assert all((ROOT / word).is_file() for word in words)
        re.compile(hook.get("files", ""))


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_forms_for_issues(name):
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [each for each in form["body"] if each["type"] != "markdown"]
    assert all({"id", "type", "attributes"} <= each.keys() for each in fields)
