"""A forward pass captured once as a CUDA graph and replayed, without launch overhead."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from harness import Session
from peers import Contender, reason
from torch import Tensor

from agebody.pipelines.bench import VERTEX_TOLERANCE, sample_arguments

BATCHES = {"cpu": (), "cuda": (1, 64)}


def captured(contender: Contender, given: dict[str, Tensor]) -> Callable[[], None]:
    """Replay a forward pass over the same inputs and outputs.

    Raises:
        ValueError: a replay on other inputs does not give their answer.
        RuntimeError: the contender does something that cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # allocates and compiles, which a capture cannot
            contender.forward(**given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        vertices = contender.forward(**given)
    given["betas"].neg_()
    graph.replay()
    difference = float((vertices - contender.forward(**given)).norm(dim=-1).max())
    given["betas"].neg_()
    if not difference <= VERTEX_TOLERANCE:
        raise ValueError(f"wrong answer: vertices differ by {1e3 * difference:.3g} mm")
    return graph.replay


def main() -> None:
    session = Session("graphs", __doc__, batches=BATCHES)
    if session.device.type != "cuda":
        raise SystemExit("CUDA graphs need CUDA: --device cuda")
    contenders = session.contenders()
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        functions = {}
        with torch.no_grad():
            for contender in contenders:
                functions[contender.name] = partial(contender.forward, **given)
                name = f"{contender.name} graph"
                try:
                    functions[name] = captured(contender, given)
                except Exception as error:
                    session.note(batch, name, failed=reason(error))
            session.time(batch, functions)
    session.finish()


if __name__ == "__main__":
    main()
