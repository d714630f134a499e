"""Under torch.compile, as one graph if possible, else with graph breaks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
from harness import Session
from peers import Contender, reason
from torch import Tensor

from agebody.pipelines.bench import VERTEX_TOLERANCE, sample_arguments

BATCHES = {"cpu": (64,), "cuda": (64, 4096)}


def compiled(contender: Contender, given: dict[str, Tensor]) -> tuple[Callable[[], Tensor], str]:
    """Return the compiled call, and whether it is one graph."""
    expected = contender.forward(**given)
    graph, broken = "one graph", None
    for fullgraph in (True, False):
        torch.compiler.reset()
        function = torch.compile(contender.forward, fullgraph=fullgraph, dynamic=False)
        try:
            difference = float((function(**given) - expected).norm(dim=-1).max())
        except Exception as error:
            if not fullgraph:
                raise
            broken = reason(error)
            continue
        if not difference <= VERTEX_TOLERANCE:
            raise ValueError(f"wrong answer: vertices differ by {1e3 * difference:.3g} mm")
        return partial(function, **given), graph if broken is None else f"graph breaks: {broken}"
    raise AssertionError


def main() -> None:
    session = Session("compiled", __doc__, batches=BATCHES)
    warnings.filterwarnings("ignore")  # the compiler's own
    contenders = session.contenders()
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        with torch.no_grad():
            for contender in contenders:
                # One after the other, because each reset of the compiler discards earlier results.
                try:
                    function, graph = compiled(contender, given)
                except Exception as error:
                    session.note(batch, f"{contender.name} compiled", failed=reason(error))
                    continue
                functions = {
                    contender.name: partial(contender.forward, **given),
                    f"{contender.name} compiled": function,
                }
                first = len(session.rows)
                session.time(batch, functions)
                for row in session.rows[first:]:
                    if row["contender"].endswith("compiled"):
                        row["graph"] = graph
    session.finish()


if __name__ == "__main__":
    main()
