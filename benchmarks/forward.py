"""Vertices from betas, pose and translation: every contender, the blend product and the roofline."""

from __future__ import annotations

from functools import partial

import torch
from ceilings import blend_roofline, measure
from harness import Session, attempt

from agebody.pipelines.bench import VERTEX_TOLERANCE, blend_products, num_coefficients, sample_arguments

TAIL = 16


def main() -> None:
    session = Session("forward", __doc__)
    contenders = session.contenders()
    exact = session.exact
    ceilings = measure(session.device, session.seconds)
    session.extra["ceilings"] = ceilings.as_dict()
    sizes = {"num_coefficients": num_coefficients(exact), "num_vertices": exact.num_vertices}
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        functions = {c.name: partial(c.forward, **given) for c in contenders}
        functions["product"] = blend_products(**sizes, batch=batch, device=session.device)[0]
        with torch.no_grad():
            expected = exact(**{name: value[-TAIL:].double() for name, value in given.items()}).vertices
            for contender in contenders:
                right = partial(_check, functions.pop(contender.name), expected)
                failure = attempt(right)
                if failure is None:
                    functions[contender.name] = partial(contender.forward, **given)
                else:
                    session.note(batch, contender.name, failed=failure)
            session.time(batch, functions)
        bound = blend_roofline(ceilings, batch=batch, **sizes)
        if bound is not None:
            session.note(batch, "roofline", median_s=bound)
    session.finish()


def _check(function: partial[torch.Tensor], expected: torch.Tensor) -> None:
    """Check the last bodies of the batch, since indices of large batches may overflow."""
    difference = float((function()[-TAIL:] - expected).norm(dim=-1).max())
    if not difference <= VERTEX_TOLERANCE:
        raise ValueError(f"wrong answer: vertices differ by {1e3 * difference:.3g} mm")


if __name__ == "__main__":
    main()
