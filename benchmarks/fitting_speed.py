"""People from keypoints: agebody compared with SPIN's SMPLify and SLAHMR's schedule, both through smplx."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from fitting_accuracy import HELD_OUT_SEED
from harness import Session
from smplify import Peer, Person, network_start, slahmr, spin
from torch import Tensor

import agebody
from agebody.fitting import fit_keypoints
from agebody.people import People, observe, random_people
from agebody.people.observations import Observations

SECONDS = 60.0
ROUNDS = 3
BATCHES = {"cpu": (64,), "cuda": (64, 1024)}
CONTENDERS = OURS, SPIN, SLAHMR = "agebody", "SPIN's SMPLify", "SLAHMR's schedule"
SLAHMR_PEOPLE = 16
"""Number of people of SLAHMR's schedule, which takes minutes: it is timed once, after a short warm-up."""


def reprojection(points: Tensor, people: People, seen: Observations) -> Tensor:
    """Return the confidence-weighted mean distance from the observed keypoints per person [pixels]."""
    distances = (people.camera.project(points).pixels - seen.keypoints).norm(dim=-1)
    return (seen.weights * distances).sum(-1) / seen.weights.sum(-1)


def main() -> None:
    session = Session("fitting_speed", __doc__, batches=BATCHES, seconds=SECONDS)
    body = agebody.SMPLA(session.asset, device=session.device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            peer = Peer(session.asset, Path(folder)) if session.device.type == "cpu" else None
        except ImportError as error:
            session.absent[SPIN] = session.absent[SLAHMR] = str(error)
            peer = None
    for batch in session.batches:
        people = random_people(body, batch, seed=HELD_OUT_SEED)
        seen = observe(body, people, seed=HELD_OUT_SEED)
        fits: dict[str, Callable[[], Tensor]] = {
            OURS: lambda: fit_keypoints(body, seen.keypoints, people.camera, weights=seen.weights).error
        }
        start = None
        if peer is not None:
            start = network_start(body, peer, people, seen)
            session.extra["start_of_the_peers"] = _quality(reprojection(peer.points(start), people, seen))
            fits[SPIN] = lambda start=start: reprojection(
                peer.points(spin(peer, seen, people.camera, start)), people, seen
            )
        _time_in_turn(session, batch, fits)
        if peer is not None and start is not None and not session.options.quick:
            some = slice(0, SLAHMR_PEOPLE)
            few, theirs = people.select(some), Observations(*(part[some] for part in seen))
            begin = Person(*(part[some] for part in start))
            slahmr(peer, theirs, few.camera, begin, root=1, smooth=1)
            _time_in_turn(
                session,
                len(few.years),
                {
                    SLAHMR: lambda: reprojection(
                        peer.points(slahmr(peer, theirs, few.camera, begin)), few, theirs
                    )
                },
                rounds=1,
            )
    session.finish()
    for row in session.rows:
        print(
            f"{row['contender']}: {row['batch'] / row['median_s']:.2f} people/s "
            f"({row['batch'] / row['cpu_s']:.2f} a second of a core), "
            f"{row['px']:.2f} px, 90 % below {row['px_90']:.2f} px"
        )


def _time_in_turn(
    session: Session, batch: int, fits: dict[str, Callable[[], Tensor]], rounds: int = ROUNDS
) -> None:
    """Record medians of wall time and CPU time, over few rounds of one call, because a fit takes seconds.

    The first call of agebody is not timed: it makes the tables of derivatives. Peers are already warm.
    """
    if OURS in fits:
        fits[OURS]()
    wall: dict[str, list[float]] = {name: [] for name in fits}
    cores: dict[str, list[float]] = {name: [] for name in fits}
    found: dict[str, Tensor] = {}
    for _ in range(rounds):
        for name, fit in fits.items():
            begin, busy = time.perf_counter(), time.process_time()
            found[name] = fit()
            if session.device.type == "cuda":
                torch.cuda.synchronize()
            wall[name].append(time.perf_counter() - begin)
            cores[name].append(time.process_time() - busy)
    for name in fits:
        session.note(
            batch,
            name,
            median_s=median(wall[name]),
            low_s=min(wall[name]),
            high_s=max(wall[name]),
            calls=rounds,
            cpu_s=median(cores[name]),
            **_quality(found[name]),
        )


def _quality(px: Tensor) -> dict[str, float]:
    return {"px": float(px.median()), "px_90": float(px.quantile(0.9))}


if __name__ == "__main__":
    main()
