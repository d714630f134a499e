"""All code of the documentation runs, and its names and links exist."""

import ast
import base64
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import io
import json
import pickle
import re
import shlex
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from importlib.metadata import metadata
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from model_files import write_bev_packs, write_kid_template, write_smplx_npz
from PIL import Image
from typer.testing import CliRunner

import agebody
from agebody.assets.io import export_smpl
from agebody.pipelines.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


pytestmark = pytest.mark.usefixtures("anny_asset")  # built once, and not by every process that a page starts


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    line: int
    code: str
    expected: str | None
    """Of Python, what it prints: the block of text that follows at once."""


def blocks(text: str) -> list[Block]:
    found = []
    fences = list(FENCE.finditer(text))
    for i, fence in enumerate(fences):
        indent, language, code = fence.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        output = None
        if i + 1 < len(fences) and fences[i + 1][2] == "text":
            between = text[fence.end() : fences[i + 1].start()]
            output = fences[i + 1][3] if not between.strip() else None
        found.append(Block(language, text[: fence.start()].count("\n") + 2, code, output))
    return found


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory, mannequin_asset):
    """The files that users bring, by the names under which the pages load them; none of them is licensed."""
    folder = tmp_path_factory.mktemp("files")
    export_smpl(mannequin_asset, folder / "SMPL_NEUTRAL.pkl")
    export_smpl(mannequin_asset.at_age(1.0), folder / "smil_web.pkl")
    np.save(folder / "smpl_kid_template.npy", mannequin_asset.age_templates[0])
    points = {name: regressor.matrix.toarray() for name, regressor in mannequin_asset.regressors.items()}
    np.save(folder / "J_regressor_h36m.npy", points["h36m17"])
    np.save(folder / "J_regressor_extra.npy", points["extra9"])
    (folder / "SMPL_to_J19.pkl").write_bytes(pickle.dumps(points["j19"], protocol=2))
    write_bev_packs(folder)
    write_smplx_npz(folder / "SMPLX_NEUTRAL.npz", num_vertices=300, num_betas=20)
    write_kid_template(folder / "smplx_kid_template.npy", num_vertices=300)
    return folder


LICENSED_PAGES = {"docs/model-files.md", "docs/api/cli.md"}
"""Pages about files of licensed models, which say so; on all others whoever has none loses one block."""


@pytest.fixture
def working_folder(stand_ins, tmp_path, monkeypatch):
    """An empty folder, and what puts those of the licensed files there for a while that a text names."""

    @contextlib.contextmanager
    def bring(text: str) -> Iterator[bool]:
        files = [
            file for file in stand_ins.iterdir() if file.name in text and not (tmp_path / file.name).exists()
        ]
        before = {*tmp_path.rglob("*")}
        for file in files:
            shutil.copy(file, tmp_path)
        yield bool(files)
        if files:
            for path in {*tmp_path.rglob("*")} - before:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    monkeypatch.chdir(tmp_path)
    return bring


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p.read_text(encoding="utf-8"))], ids=name_of)
def test_blocks_run(page, working_folder, unchecked, monkeypatch):
    text = page.read_text(encoding="utf-8")
    monkeypatch.setattr("agebody.pipelines.demo._time", lambda *arguments: (0.0, 0.0))
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": page.stem}
    with working_folder(text if name_of(page) in LICENSED_PAGES else ""):
        for block in blocks(text):
            # What a block that needs a licensed file leaves behind is not there for the next one.
            with working_folder(block.code) as licensed:
                run_block(block, {**namespace} if licensed else namespace, page)


def run_block(block: Block, namespace: dict[str, object], page: Path) -> None:
    where = f"{name_of(page)}:{block.line}"
    if block.language == "python":
        printed = io.StringIO()
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        if block.expected is not None:
            assert printed.getvalue() == block.expected, where
    elif block.language == "bash":
        for command in block.code.splitlines():
            run_command(shlex.split(command), where)
    else:
        assert block.language in ("text", "json", "bibtex", "math"), f"{where}: say what language this is"


def run_command(words: list[str], where: str) -> None:
    """Run what is this library's; of other programs, check what the command asks for."""
    match words:
        case ["agebody", "demo", *options]:
            body = [] if "--body" in options else ["--body", "mannequin"]
            run_agebody(["demo", *options, *body, "--width", "160"], where)
        case ["agebody", "bench", *options]:
            small = ["2" if before == "--batch" else word for before, word in pairwise(["", *options])]
            run_agebody(["bench", *small, "--batch", "1", "--seconds", "0"], where)
        case ["agebody", *rest]:
            run_agebody(rest, where)
        case [str(variable), *rest] if re.fullmatch(r"[A-Z_]+=\S+", variable):
            run_command(rest, where)
        case ["make", target, *_variables]:
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), f"{where}: make {target}"
        case ["git", "clone", "REPOSITORY", "agebody"] | ["cd", "agebody"]:
            pass
        case ["pip", "install", "torch", "--index-url", "https://download.pytorch.org/whl/cpu"]:
            pass
        case ["pip", "install", what]:
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", what)
            assert extras, f"{where}: {what}"
            offered = metadata("agebody").get_all("Provides-Extra") or []
            assert {*(extras[1] or "").split(",")} <= {"", *offered}, where
        case ["python", script]:
            assert (ROOT / script).is_file(), f"{where}: {script}"
        case _:
            pytest.fail(f"{where}: {shlex.join(words)}: teach this test to check it")


def run_agebody(arguments: list[str], where: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{where}: {shlex.join(arguments)}: {result.output}"


def test_blocks_are_found_with_their_line_and_output():
    text = "a\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n    ```bash\n    make demo\n    ```\n"
    assert blocks(text) == [
        Block("python", 3, "print(1)\n", "1\n"),
        Block("text", 7, "1\n", None),
        Block("bash", 11, "make demo\n", None),
    ]


def anchors(text: str) -> set[str]:
    """As Python-Markdown makes them."""
    found = set()
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = unicodedata.normalize("NFKD", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading))
        plain = re.sub(r"[^\w\s-]", "", plain.encode("ascii", "ignore").decode()).strip().lower()
        found.add(re.sub(r"[-\s]+", "-", plain))
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name_of(page)}: {link}"


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/-]+\.md)$", read("mkdocs.yml"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {f"docs/{page}" for page in listed} == {name_of(page) for page in PAGES if page.parent != ROOT}


def public_names() -> dict[str, frozenset[str]]:
    """Return the modules that users import from, with their public names.

    These are the modules with `__all__`, and all modules of the kernels without an underscore.
    """
    found = {}
    for root in ("src", "kernels"):
        for path in (ROOT / root).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT / root).with_suffix("").parts).removesuffix(".__init__")
            if name.startswith("agebody.assets."):  # `agebody` exports their names
                continue
            if re.search(r"^__all__ = ", path.read_text(encoding="utf-8"), re.MULTILINE):
                found[name] = frozenset(importlib.import_module(name).__all__)
            elif name.startswith("agebody_kernels.") and "._" not in name:
                found[name] = frozenset(dir(importlib.import_module(name)))
    return found


PUBLIC = public_names()


def imported(code: str) -> Iterator[tuple[str, str]]:
    """Yield module and name of each import from this library; for ``import module``, the name is empty."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("agebody"):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.startswith("agebody"))


def is_public(module: str, name: str) -> bool:
    return name in PUBLIC.get(module, ()) or f"{module}.{name}".removesuffix(".") in PUBLIC


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_import_public_names(page):
    for block in blocks(page.read_text(encoding="utf-8")):
        for module, name in imported(block.code) if block.language == "python" else ():
            assert is_public(module, name), f"{name_of(page)}:{block.line}: {module} {name}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pages_mention_public_names(page):
    """Dotted names in text and code: each part is a public module or name of the one before it."""
    text = re.sub("^:::.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    expect_public_names(text, name_of(page))


def expect_public_names(text: str, where: str) -> None:
    for dotted in re.findall(r"(?<![\w./-])agebody(?:\.[A-Za-z]\w*)+", text):
        module, *parts = dotted.split(".")
        while parts and (f"{module}.{parts[0]}" in PUBLIC or (module == "agebody" and parts[0] in PACKAGES)):
            module += "." + parts.pop(0)
        assert not parts or is_public(module, parts[0]), f"{where}: {dotted}"


@pytest.mark.parametrize("module", sorted(PUBLIC))
def test_reference_mentions_public_names(module):
    """Docstrings of what is public, too, which are the pages of the reference."""
    for name in PUBLIC[module]:
        value = getattr(importlib.import_module(module), name)
        members = (
            [each for key, each in vars(value).items() if key[0] != "_"] if inspect.isclass(value) else []
        )
        for text in (inspect.getdoc(each) or "" for each in (value, *members) if callable(each)):
            expect_public_names(text, f"{module}.{name}")


PACKAGES = ("compat", "pipelines")
"""Packages without public names of their own."""


def documented() -> list[tuple[str, str]]:
    """Return module and name of everything that the reference documents; the name "" is a whole module."""
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE)
    return [(target, "") if target in PUBLIC else target.rpartition(".")[::2] for target in targets]


def test_reference_has_every_public_name():
    """What several modules export is documented once."""
    whole = {module for module, name in documented() if not name}
    public = {
        (module, name): getattr(importlib.import_module(module), name)
        for module in PUBLIC.keys() - whole
        for name in PUBLIC[module]
    }
    found = {id(public[target]) for target in documented() if target in public}
    assert [
        target for target, value in public.items() if not inspect.ismodule(value) and id(value) not in found
    ] == []


def test_reference_has_nothing_twice():
    assert len(set(documented())) == len(documented())


@pytest.mark.parametrize(("module", "name"), documented())
def test_reference_names_are_public(module, name):
    """Or results and errors, which nobody imports."""
    if not is_public(module, name):
        value = getattr(importlib.import_module(module), name)
        assert issubclass(value, (tuple, int, Exception)) or dataclasses.is_dataclass(value)


def test_architecture_names_every_package_and_file():
    """Of the package itself; nested packages may be named. What is named exists."""
    page = read("docs/architecture.md")
    source = ROOT / "src" / "agebody"
    inner = [path for path in source.rglob("*") if path.is_dir() or path.suffix == ".py"]
    names = {str(path.relative_to(source)) + "/" * path.is_dir() for path in inner if "__" not in path.name}
    tree = re.findall(r"^( +)([\w/.]+)  ", blocks(page)[0].code, re.MULTILINE)
    assert {name for name in names if re.fullmatch(r"\w+/|\w+\.py", name)} - {"compat/"} <= {
        n for _, n in tree
    }
    package, paths = "", []
    for indent, name in tree:
        package = name if len(indent) == 2 else package
        paths.append(name if len(indent) == 2 else package + name)
    assert {*paths} <= names
    named = re.findall(r"`((?:\w+/)+\w*(?:\.py)?)`", page)
    roots = (source, ROOT, source.parent, ROOT / "kernels", ROOT / "docs")
    assert all(any((root / path).exists() for root in roots) for path in named)


NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PLAIN = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""Metadata of notebooks without those of the machine that ran them."""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebooks_run_and_reproduce_their_outputs(path, tmp_path, monkeypatch, unchecked):
    """Text is compared as it is, pictures up to their edges and colours; a tag says where numbers vary."""
    monkeypatch.chdir(tmp_path)
    stored = json.loads(path.read_text(encoding="utf-8"))
    run_notebook = load_script(path.parent / "__main__.py").run_notebook
    assert stored["metadata"] == PLAIN
    assert path.stat().st_size < 200_000
    assert not re.search(r"/(home|tmp|root|Users|work)/", path.read_text(encoding="utf-8"))
    for old, new in zip(stored["cells"], run_notebook(path)["cells"], strict=True):
        if old["cell_type"] != "code":
            links = re.findall(r"\]\(([^):\s]+)\)", "".join(old["source"]))
            assert all((path.parent / link).is_file() for link in links), links
            continue
        where = f"{path.name}, cell {new['execution_count']}"
        assert old["execution_count"] == new["execution_count"], where
        vary = "numbers-vary" in old["metadata"].get("tags", ())
        assert len(old["outputs"]) == len(new["outputs"]), where
        for before, now in zip(old["outputs"], new["outputs"], strict=True):
            texts = [
                "".join(each.get("text", each.get("data", {}).get("text/plain"))) for each in (before, now)
            ]
            first, second = [re.sub(r"[-\d.e]+", "0", text) if vary else text for text in texts]
            assert first == second, where
            assert_alike(*(each.get("data", {}).get("image/png") for each in (before, now)), vary, where)


def test_notebooks_are_pages():
    """Each has a page, on which it stands with all that it shows."""
    pytest.importorskip("markdown")
    with_notebooks = load_script(ROOT / "docs" / "build_notebooks.py").with_notebooks
    for path in NOTEBOOKS:
        page = with_notebooks(path.with_suffix(".md").read_text(encoding="utf-8"))
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", ())]
        pictures = [each["data"]["image/png"] for each in outputs if "image/png" in each.get("data", {})]
        texts = ["".join(each["text"]) for each in outputs if "text" in each]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        assert all("".join(part).strip() in page for part in (*pictures, *texts, *code)), path


def assert_alike(before: str | None, now: str | None, vary: bool, where: str) -> None:
    """Compare two pictures, in base64; a difference of 10 of 255 is that of another body or another view."""
    assert (before is None) == (now is None), where
    if before is not None and now is not None:
        pixels = [
            np.asarray(Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB"), float)
            for each in (before, now)
        ]
        assert pixels[0].shape == pixels[1].shape, where
        assert vary or np.abs(pixels[0] - pixels[1]).mean() < 3, where


def rows(page: str) -> list[list[str]]:
    """Cells of all tables of a page."""
    lines = re.findall(r"^\|(.+)\|$", read(page), re.MULTILINE)
    return [[cell.strip().strip("`") for cell in line.split("|")] for line in lines]


def test_table_of_joints():
    asset = agebody.mannequin()
    cells = [row for row in rows("docs/conventions.md") if len(row) == 6 and row[0].isdigit()]
    found = {int(row[i]): (row[i + 1], row[i + 2]) for row in cells for i in (0, 3)}
    names = [*asset.joint_names, "–"]  # parent -1 is the last
    assert found == {j: (names[j], names[parent]) for j, parent in enumerate(asset.parents)}


def test_table_of_layouts():
    found = {row[0]: int(row[1]) for row in rows("docs/conventions.md") if row[0] in agebody.LAYOUTS}
    assert found == {name: len(layout) for name, layout in agebody.LAYOUTS.items()}


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_built_site_loads_no_foreign_files(tmp_path):
    problems = load_script(ROOT / "docs" / "build_site.py").problems
    (tmp_path / "guide").mkdir()
    (tmp_path / "a b.png").touch()
    (tmp_path / "style.css").write_text(
        'a { background: url("a%20b.png") } b { background: url(data:image/png;x) }'
    )
    good = '<img alt="x" src="../a%20b.png"><link rel="stylesheet" href="/style.css"><a href="https://arxiv.org/">'
    (tmp_path / "guide" / "index.html").write_text(good + '<iframe src="../guide/"></iframe>')
    assert [*problems(tmp_path)] == []
    bad = '<img src=b.png><script async src="https://cdn.org/x.js"><iframe src="view.html?q=1"></iframe>'
    (tmp_path / "index.html").write_text(bad)
    (tmp_path / "style.css").write_text('@import "//fonts.org/a.css"; a { background: url(c.png) }')
    assert [*problems(tmp_path)] == [
        "index.html: b.png does not exist",
        "index.html: loads https://cdn.org/x.js from another machine",
        "index.html: view.html?q=1 does not exist",
        "style.css: loads //fonts.org/a.css from another machine",
        "style.css: c.png does not exist",
    ]


def test_text_for_language_models_follows_the_navigation(tmp_path):
    text = "---\nhide:\n  - toc\n---\n\n# T\n\n![p](p.png)\n\nWhat [it](x.md)\nis.\n"
    (tmp_path / "index.md").write_text(text)
    (tmp_path / "a.md").write_text("# A\n\n```python\nx\n```\n\n| a |\n| - |\n")
    nav = [{"Home": "index.md"}, {"Guide": [{"Part": [{"First": "a.md"}]}]}, {"Last": "a.md"}]
    config = {"site_name": "name", "site_description": "About.", "nav": nav}
    assert load_script(ROOT / "docs" / "build_site.py").llms_text(config, tmp_path) == (
        "# name\n\n> About.\n\n- [Home](./): What it is.\n\n## Guide / Part\n\n- [First](a/)\n"
        "\n## Last\n\n- [Last](a/)\n"
    )


def test_search_finds_classes_by_their_fields():
    items = [
        {"location": "api/a/#m.Fit", "title": "m.Fit", "text": "<p>A fit.</p>"},
        {"location": "api/a/#m.Fit.betas", "title": "betas", "text": "<pre><code>betas: Tensor\n"},
        {"location": "api/a/#m.Fit.run", "title": "run", "text": "<pre><code>run(betas: Tensor)\n"},
        {"location": "guide/#betas", "title": "Betas", "text": "<p>Shape.</p>"},
    ]
    found = load_script(ROOT / "docs" / "build_site.py").fold_fields(items)
    assert [item["title"] for item in found] == ["m.Fit", "run", "Betas"]
    assert "betas: Tensor" in found[0]["text"]


def test_versions_of_the_site_are_separate_folders(tmp_path):
    add_version = load_script(ROOT / "docs" / "build_site.py").add_version
    for version, text in (("0.9", "old"), ("0.10", "first"), ("0.10", "again"), ("0.8", "older")):
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "index.html").write_text(text)
        add_version(tmp_path / "site", tmp_path / "pages", version)
    assert (tmp_path / "pages" / "0.10" / "index.html").read_text() == "again"
    assert json.loads((tmp_path / "pages" / "versions.json").read_text()) == [
        {"version": "0.10", "title": "0.10", "aliases": ["latest"]},
        {"version": "0.9", "title": "0.9", "aliases": []},
        {"version": "0.8", "title": "0.8", "aliases": []},
    ]
    assert "url=0.10/" in (tmp_path / "pages" / "index.html").read_text()


def load_pictures() -> dict[str, tuple[Callable[[Path, int], None], int]]:
    found = {}
    for path in sorted((ROOT / "docs" / "pictures").glob("[!_]*.py")):
        found |= load_script(path).IMAGES
    return found


PICTURES = load_pictures()


def test_pictures_are_those_that_the_scripts_draw():
    files = {p.name: p for p in (ROOT / "docs" / "images").iterdir() if not p.name.startswith("bench_")}
    assert set(files) == set(PICTURES)
    for name, (_, width) in PICTURES.items():
        assert files[name].stat().st_size < 400_000
        with Image.open(files[name]) as image:
            assert image.width == width
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(f"images/{name})" in pages for name in files)


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - {"ages.png"}))
def test_pictures_can_be_drawn_again(tmp_path, name):
    draw, _ = PICTURES[name]
    draw(tmp_path / name, 200)
    with Image.open(tmp_path / name) as image:
        assert image.width == 200
        assert np.ptp(np.asarray(image)) > 100
