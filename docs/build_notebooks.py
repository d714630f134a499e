"""Notebooks as pages: a line that is only a link to a notebook becomes its cells, with what they show."""

from __future__ import annotations

import json
import re
from pathlib import Path

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

FOLDER = Path(__file__).parent / "notebooks"
LINK = re.compile(r"^\[[^\]]*\]\(([\w-]+\.ipynb)\)$", re.MULTILINE)


def with_notebooks(page: str) -> str:
    """Return a page with the notebooks in place of links to them on lines of their own."""
    return LINK.sub(lambda link: notebook_text(FOLDER / link[1]), page)


def notebook_text(path: Path) -> str:
    """Return a notebook in Markdown, without its title; pictures are part of the text."""
    parts = [f"[Download this notebook]({path.name})"]
    subject = path.stem
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"\A# .*\n", "", source)
            parts.append(re.sub(r"\.ipynb\)", ".md)", text))
            subject = re.split(r"[.:,]\s", re.sub(r"[*`#]", "", text.strip()))[0]
            continue
        parts.append(f"````python\n{source}\n````")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text")})
            if png := data.get("image/png"):
                parts.append(f"![{subject}](data:image/png;base64,{''.join(png).strip()})")
            else:
                parts.append(f"````text\n{''.join(data['text/plain']).rstrip()}\n````")
    return "\n\n".join(parts)


class Notebooks(Extension):
    """Markdown with notebooks in it."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Put notebooks in before anything else is read."""
        md.preprocessors.register(Insertion(md), "notebooks", 1000)


class Insertion(Preprocessor):
    """Put notebooks into the lines of a page."""

    def run(self, lines: list[str]) -> list[str]:
        """Return the lines of a page with its notebooks."""
        return with_notebooks("\n".join(lines)).split("\n")


makeExtension = Notebooks
"""The name by which Markdown finds an extension."""
