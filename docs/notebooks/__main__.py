"""Run the notebooks and store what they show: ``python docs/notebooks [NAME.ipynb ...]``; all without names.

Any Jupyter runs them, too. Here all cells run in this process, so that the tests need no Jupyter.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent


def run_notebook(path: Path) -> dict[str, Any]:
    """Return a notebook with the outputs of its cells, which run in the working folder."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        cell["execution_count"] = number
        cell["outputs"] = _run_cell("".join(cell["source"]), number, namespace)
    return notebook


def _run_cell(source: str, number: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell; what its last line returns is shown, as Jupyter does."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        value = (
            eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace) if last else None
        )
    outputs = []
    if text := printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)})
    if value is not None:
        shown = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            shown = {"image/png": _small(value._repr_png_()), "text/plain": [f"<{type(value).__name__}>"]}
        result = {"data": shown, "execution_count": number, "metadata": {}, "output_type": "execute_result"}
        outputs.append(result)
    return outputs


def _small(png: bytes) -> str:
    """Return a picture in 200 colours, which takes a third of the space, as base64."""
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(200).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Run the notebooks named on the command line, each in an empty folder."""
    for path in [FOLDER / name for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            notebook = run_notebook(path)
            os.chdir(FOLDER)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
