"""Markdown tables and the numbers in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def table(heads: list[str], rows: list[list[str]], align: str) -> str:
    marks = ["--:" if a == "r" else "---" for a in align]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, marks, *rows))


def quoted(text: str, length: int = 110) -> str:
    """Return text as one line of inline code, without characters that would end it."""
    text = re.sub(r"0x[0-9a-f]+", "0x…", " ".join(text.split())).replace("`", "'").replace("|", "/")
    return f"`{text if len(text) <= length else text[: length - 1] + '…'}`"


def number(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:.3g} million"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def per_body(row: Mapping[str, Any]) -> str:
    return number(1e6 * row["median_s"] / row["batch"]) if "median_s" in row else ""
