"""Identity cached: betas are fixed once and the body is posed again; layers without a cache recompute it."""

from __future__ import annotations

from functools import partial

import torch
from harness import Session

from agebody.pipelines.bench import VERTEX_TOLERANCE, sample_arguments


def main() -> None:
    session = Session("identity", __doc__)
    contenders = session.contenders()
    session.extra["without_cache"] = [c.name for c in contenders if c.shape is None]
    for batch in session.batches:
        given = sample_arguments(batch, device=session.device)
        pose = {name: value for name, value in given.items() if name != "betas"}
        functions = {}
        with torch.no_grad():
            for contender in contenders:
                if contender.shape is None:
                    functions[contender.name] = partial(contender.forward, **given)
                    continue
                functions[contender.name] = posed = partial(contender.shape(given["betas"]), **pose)
                difference = float((posed() - contender.forward(**given)).norm(dim=-1).max())
                if not difference <= VERTEX_TOLERANCE:
                    raise SystemExit(f"{contender.name}: the cache changes vertices by {difference:.2g} m")
            session.time(batch, functions)
    session.finish()


if __name__ == "__main__":
    main()
