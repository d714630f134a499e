"""Build the site of the documentation into ``site``: ``python docs/build_site.py``.

``python docs/build_site.py FOLDER`` adds the site to a folder of versions, as ``FOLDER/0.2``; each page then
has a version selector.

Zensical's strict mode fails on broken links, anchors, references and directives. What it lets pass is checked
here, in what was built: missing files, and files of other machines, which a reader offline would miss.
"""

from __future__ import annotations

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlparse

ROOT = Path(__file__).parents[1]
LOADED = re.compile(
    r"<(?:img|script|iframe|source|video|embed|use|link(?=[^>]*rel=\"?(?:stylesheet|icon|preload|preconnect|manifest)))\b"
    r"[^>]*?\s(?:src|href|poster)=(?:\"([^\"]*)\"|'([^']*)'|([^\s>]+))",
    re.IGNORECASE,
)
COLOURS = re.compile(r"\x1b\[[\d;]*m")
STYLED = re.compile(r"(?:@import\s+|url\(\s*)[\"']?([^\"')\s]+)", re.IGNORECASE)


def format_math(source: str, *arguments: Any, **options: Any) -> str:
    """Return a fenced block of TeX as MathML, which browsers typeset themselves."""
    from math_core import LatexError, LatexToMathML
    from pymdownx.superfences import SuperFencesException

    try:
        formula = LatexToMathML().convert_with_local_state(source.strip(), displaystyle=True)
    except LatexError as error:
        raise SuperFencesException(f"in a formula: {COLOURS.sub('', str(error)).strip()}") from None
    return f'<div class="math">{formula}</div>'


def entries(nav: list[Any], section: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the section, title and file of each page of a navigation, in order."""
    for entry in nav:
        (title, inside), *_ = entry.items() if isinstance(entry, dict) else [(entry, entry)]
        if isinstance(inside, list):
            yield from entries(inside, f"{section} / {title}".removeprefix(" / "))
        else:
            yield section, title, inside


def summary(page: str) -> str:
    """Return the first paragraph of a page in Markdown, as plain text on one line."""
    text = re.sub(r"\A---$.*?^---$|^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n", text):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()))
        if (
            plain
            and not re.match(r"[#|<:!\-]|\*\*?[^*]+\*\*?$", plain)
            and not paragraph.startswith(("![", "    "))
        ):
            return plain
    return ""


def llms_text(config: dict[str, Any], docs: Path) -> str:
    """Return the pages of a site with what each is about, as language models look for it (llmstxt.org)."""
    lines = [f"# {config['site_name']}", "", f"> {config['site_description']}", ""]
    last = ""
    for section, title, file in entries(config["nav"]):
        if section != last:
            lines += ["", f"## {section or title}", ""]
        last = section
        about = summary((docs / file).read_text(encoding="utf-8"))
        address = urljoin(
            config.get("site_url") or "", re.sub(r"(index)?\.md$", lambda m: "" if m[1] else "/", file)
        )
        lines.append(f"- [{title}]({address or './'})" + f": {about}" * bool(about))
    return "\n".join(lines) + "\n"


def problems(site: Path) -> Iterator[str]:
    """Yield what pages and style sheets load that is not in the site."""
    for path in sorted((*site.rglob("*.html"), *site.rglob("*.css"))):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".css":
            addresses = STYLED.findall(text)
        else:
            addresses = [html.unescape(next(filter(None, found), "")) for found in LOADED.findall(text)]
        for address in dict.fromkeys(addresses):
            parts = urlparse(address)
            name = path.relative_to(site)
            if parts.scheme in ("data", "blob"):
                continue
            if parts.scheme or parts.netloc:
                yield f"{name}: loads {address} from another machine"
                continue
            base = site if parts.path.startswith("/") else path.parent
            target = base / unquote(parts.path).lstrip("/")
            if parts.path and not (target.is_file() or (target / "index.html").is_file()):
                yield f"{name}: {address} does not exist"


def fold_fields(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let a search find a class by its fields, whose own entries would bury the guide about, say, betas."""
    places = {item["location"]: item for item in items}
    kept = []
    for item in items:
        owner = places.get(item["location"].rpartition(".")[0])
        if owner is not None and item["text"].startswith(f"<pre><code>{item['title']}: "):
            owner["text"] += item["text"]
        else:
            kept.append(item)
    return kept


def add_version(site: Path, folder: Path, version: str) -> None:
    """Move a built site into a folder of versions, in place of the same version, and list them all.

    The theme reads ``versions.json``, in the format of mike. ``index.html`` leads to the newest version.
    """
    shutil.rmtree(folder / version, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(site, folder / version)
    found = [path.parent.name for path in folder.glob("*/index.html")]
    found.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)], reverse=True)
    listed = [{"version": name, "title": name, "aliases": ["latest"] * (name == found[0])} for name in found]
    (folder / "versions.json").write_text(json.dumps(listed), encoding="utf-8")
    newest = f'<meta http-equiv="refresh" content="0; url={found[0]}/"><a href="{found[0]}/">{found[0]}</a>'
    (folder / "index.html").write_text(f"<!doctype html><title>agebody</title>{newest}\n", encoding="utf-8")
    (folder / ".nojekyll").touch()  # GitHub Pages serves the files as they are


def main(versions: Path | None = None) -> None:
    """Build the site, or print its errors; with a folder of versions, add it there."""
    if importlib.util.find_spec("zensical") is None:
        raise SystemExit('zensical is not installed: Python 3.11 or newer, and pip install -e ".[docs]"')
    import tomllib
    import yaml

    from agebody import SMPLA, __version__, mannequin
    from agebody.draw import save_html

    with open(ROOT / "mkdocs.yml", encoding="utf-8") as file:
        config = yaml.load(file, yaml.BaseLoader)  # plain text for everything, names of functions too
    here = str(Path(__file__).parent)
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with open(ROOT / "pyproject.toml", "rb") as file:
        repository = tomllib.load(file)["tool"]["hatch"]["metadata"]["hooks"]["custom"]["repository"]
    environment = os.environ | {"PYTHONPATH": path, "NO_COLOR": "1"}
    if repository:
        environment["AGEBODY_REPOSITORY"] = repository
    if versions is not None:
        environment["AGEBODY_VERSIONS"] = "mike"
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    if subprocess.run(command, cwd=ROOT, env=environment).returncode:
        raise SystemExit(1)
    site = ROOT / config["site_dir"]
    save_html(SMPLA(mannequin()), site / "viewer.html", overwrite=True)  # in a frame of the home page
    (site / "llms.txt").write_text(llms_text(config, ROOT / "docs"), encoding="utf-8")
    search = json.loads((site / "search.json").read_text(encoding="utf-8"))
    search["items"] = fold_fields(search["items"])
    (site / "search.json").write_text(json.dumps(search, ensure_ascii=False), encoding="utf-8")
    if wrong := [*problems(site)]:
        raise SystemExit("\n".join(wrong))
    if versions is not None:
        add_version(site, versions, ".".join(__version__.split(".")[:2]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
