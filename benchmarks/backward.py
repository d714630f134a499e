"""Vertices and gradients with respect to betas, pose and translation, compared with the blend products."""

from __future__ import annotations

from functools import partial

import torch
from ceilings import blend_roofline, measure
from harness import Session

from agebody.pipelines.bench import blend_products, forward_and_gradient, num_coefficients, sample_arguments


def main() -> None:
    session = Session("backward", __doc__)
    contenders = session.contenders()
    ceilings = measure(session.device, session.seconds)
    session.extra["ceilings"] = ceilings.as_dict()
    num_vertices = session.asset.num_vertices
    sizes = {"num_coefficients": num_coefficients(session.exact), "num_vertices": num_vertices}
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        weights = torch.randn(batch, num_vertices, 3, device=session.device)
        functions = {c.name: partial(forward_and_gradient, c.forward, given, weights) for c in contenders}
        functions["product"] = blend_products(**sizes, batch=batch, device=session.device)[1]
        session.time(batch, functions)
        bound = blend_roofline(ceilings, batch=batch, **sizes, products=2)
        if bound is not None:
            session.note(batch, "roofline", median_s=bound)
    session.finish()


if __name__ == "__main__":
    main()
