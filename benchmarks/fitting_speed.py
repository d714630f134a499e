"""People from keypoints: agebody beside SPIN's SMPLify and SLAHMR's schedule, both through smplx."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from fitting_accuracy import HELD_OUT_SEED
from harness import Session
from smplify import Peer, Person, network_start, slahmr, spin
from torch import Tensor

import agebody
from agebody.fitting.images import KeypointFit, fit_keypoints
from agebody.people import Observations, People, observe, random_people

SECONDS = 60.0
OURS, SPIN, SLAHMR = "agebody", "SPIN's SMPLify", "SLAHMR's schedule"


def reprojection(points: Tensor, people: People, seen: Observations) -> Tensor:
    """Mean distance of each person's keypoints from where they were reported, weighted by confidence [pixels]."""
    distances = (people.camera.project(points).pixels - seen.keypoints).norm(dim=-1)
    return (seen.weights * distances).sum(-1) / seen.weights.sum(-1)


def main() -> None:
    session = Session("fitting_speed", __doc__, batches={"cpu": (64,), "cuda": (64, 1024)}, seconds=SECONDS)
    body = agebody.SMPLA(session.asset, device=session.device)
    with tempfile.TemporaryDirectory() as folder:
        try:
            peer = Peer(session.asset, Path(folder))
        except ImportError as error:
            session.absent[SPIN] = session.absent[SLAHMR] = str(error)
            peer = None
    for batch in session.batches:
        people = random_people(body, batch, seed=HELD_OUT_SEED)
        seen = observe(body, people, seed=HELD_OUT_SEED)
        camera = people.camera

        def ours() -> KeypointFit:
            return fit_keypoints(body, seen.keypoints, camera, weights=seen.weights)

        found: dict[str, Tensor] = {OURS: ours().reprojection}
        functions = {OURS: ours}
        if peer is not None and session.device.type == "cpu":
            start = network_start(body, peer, people, seen)
            found["start of the peers"] = reprojection(peer.points(start), people, seen)
            found[SPIN] = reprojection(peer.points(spin(peer, seen, camera, start)), people, seen)
            functions[SPIN] = lambda: spin(peer, seen, camera, start)
            if not session.options.quick:
                found[SLAHMR] = _once(session, peer, people, seen, start)
        session.time(batch, functions)
        for row in session.rows:
            if row["batch"] == batch:
                row |= _quality(found[row["contender"]])
        if "start of the peers" in found:
            session.extra["start_of_the_peers"] = _quality(found["start of the peers"])
    session.finish()
    for row in session.rows:
        print(
            f"{row['contender']}: {row['batch'] / row['median_s']:.2f} people/s, "
            f"{row['px']:.2f} px, 90 % below {row['px_90']:.2f} px"
        )


def _once(session: Session, peer: Peer, people: People, seen: Observations, start: Person) -> Tensor:
    """SLAHMR's schedule takes minutes: it is timed once, on the whole batch, after a short run to warm up."""
    slahmr(peer, seen, people.camera, start, root=1, smooth=1)
    begin = time.perf_counter()
    person = slahmr(peer, seen, people.camera, start)
    seconds = time.perf_counter() - begin
    session.note(len(people.years), SLAHMR, median_s=seconds, low_s=seconds, high_s=seconds, calls=1)
    return reprojection(peer.points(person), people, seen)


def _quality(px: Tensor) -> dict[str, float]:
    return {"px": float(px.median()), "px_90": float(px.quantile(0.9))}


if __name__ == "__main__":
    main()
