"""COCO's 17 points, without the mesh if the contender can, else regressed from it."""

from __future__ import annotations

from functools import partial

import torch
from harness import Session
from peers import LAYOUT

from agebody.pipelines.bench import VERTEX_TOLERANCE, sample_arguments


def main() -> None:
    session = Session("keypoints", __doc__)
    contenders = session.contenders()
    given = sample_arguments(16, device=session.device)
    expected = session.exact.keypoints(LAYOUT, **{name: value.double() for name, value in given.items()})
    for contender in contenders:
        difference = float((contender.keypoints(**given) - expected).norm(dim=-1).max())
        if not difference <= VERTEX_TOLERANCE:
            raise SystemExit(f"{contender.name}: points differ by {1e3 * difference:.3g} mm")
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        with torch.no_grad():
            session.time(batch, {c.name: partial(c.keypoints, **given) for c in contenders})
    session.finish()


if __name__ == "__main__":
    main()
