"""Simulate a data set on a cluster that loses workers: how much longer than ideal it takes.

The decisions are those of `agebody fit-shards`: `run_jobs` and its schedule run unchanged, on simulated
workers. Each worker is lost after an exponentially distributed time, with the shard that it works on, and is
replaced after a pause.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from agebody.age import parse_ages
from agebody.annotations import ImageEntry, People
from agebody.body import BodyModel
from agebody.keypoints import LAYOUTS
from agebody.people import observe, random_people
from agebody.pipelines.jobs.schedule import Done, Failed, run_jobs


class SimulatedWorkers:
    """Workers whose jobs take time, and which are lost; the clock jumps from event to event.

    Args:
        seconds: of each job.
        count: workers.
        lost_every: mean time until a worker is lost [s].
        away: time until it is replaced [s].
        seed: of the times.
    """

    def __init__(self, seconds: list[float], count: int, lost_every: float, away: float, seed: int) -> None:
        self._seconds, self._count, self._lost_every, self._away = seconds, count, lost_every, away
        self._random = random.Random(seed)
        self._time, self._number, self.lost = 0.0, 0, 0
        self._waiting: deque[int] = deque()
        self._events: list[tuple[float, int, str, Any]] = []
        self._until = [self._random.expovariate(1 / lost_every) for _ in range(count)]
        self._free = list(range(count))

    def window(self) -> int:
        return max(8, 2 * self._count)

    def now(self) -> float:
        return self._time

    def start(self, job: int) -> None:
        self._waiting.append(job)

    def wait(self, seconds: float) -> list[tuple[int, Done | Failed]]:
        limit, ended = self._time + seconds, []
        while not ended:
            while self._free and self._waiting:
                self._begin(self._free.pop(), self._waiting.popleft())
            if not self._events or self._events[0][0] > limit:
                self._time = limit
                break
            self._time, _, kind, (worker, job) = heapq.heappop(self._events)
            if kind == "done":
                ended.append((job, Done(str(worker), None)))
            if kind == "lost":
                self.lost += 1
                self._push(self._time + self._away, "back", (worker, job))
                ended.append((job, Failed(RuntimeError("lost"), retry=True)))
            else:
                self._free.append(worker)
        return ended

    def _begin(self, worker: int, job: int) -> None:
        if self._until[worker] <= self._time:  # it was lost while it had nothing to do, and is back
            self._until[worker] = self._time + self._random.expovariate(1 / self._lost_every)
        end = self._time + self._seconds[job]
        if self._until[worker] < end:
            end = self._until[worker]
            self._until[worker] = end + self._away + self._random.expovariate(1 / self._lost_every)
            self._push(end, "lost", (worker, job))
        else:
            self._push(end, "done", (worker, job))

    def _push(self, when: float, kind: str, what: tuple[int, int]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, kind, what))


def simulate(shards: int, count: int, lost_every: float, away: float, seed: int = 0) -> dict[str, float]:
    """Return how long a data set takes, and how often workers were lost.

    A shard of 4096 people takes 23.7 s on average (173 people per second), with a spread of 15 %.
    """
    draw = random.Random(seed)
    seconds = [23.7 * draw.lognormvariate(-(0.15**2) / 2, 0.15) for _ in range(shards)]
    workers = SimulatedWorkers(seconds, count, lost_every, away, seed)
    largest_first = sorted(range(shards), key=lambda shard: -seconds[shard])
    outcomes = list(run_jobs(workers, largest_first))
    done = {shard for shard, outcome in outcomes if isinstance(outcome, Done)}
    ideal = math.fsum(seconds) / count
    return {
        "shards": shards,
        "workers": count,
        "lost_every_s": lost_every,
        "away_s": away,
        "done": len(done),
        "twice": len(outcomes) - len({shard for shard, _ in outcomes}),
        "lost": workers.lost,
        "ideal_s": round(ideal, 1),
        "makespan_s": round(workers.now(), 1),
        "ratio": round(workers.now() / ideal, 4),
    }


def observed_people(body: BodyModel, count: int, seed: int) -> People:
    """Return random people as a detector sees them, one in each image, with their ages."""
    found = random_people(body, count, seed=seed, size=(640, 480))
    seen = observe(body, found, seed=seed, noise=1.0)
    weights, rows = seen.weights.double().numpy(), np.arange(count)
    return People(
        Path("keypoints.json"),
        LAYOUTS["coco17"],
        tuple(ImageEntry(f"{i}.jpg", i, (640, 480)) for i in rows),
        image=rows,
        ids=rows,
        keypoints=np.where(weights[..., None] > 0, seen.keypoints.double().numpy(), 0),
        weights=weights,
        boxes=np.full((count, 4), np.nan),
        ages=parse_ages(years=found.years.double().numpy()),
    )


def measure(nodes: int, shards: int = 6, people: int = 256) -> dict[str, float]:
    """Return people per second on nodes of one CPU on this machine, or in one process for 0 nodes.

    ``busy`` is the share of the time between a worker's first and last shard in which it fits: what is left
    is the overhead of the scheduling, whatever else the machine does. Shards are read and written in both.
    """
    import tempfile

    from ray.cluster_utils import Cluster as Nodes

    import agebody
    from agebody.annotations import write_shards
    from agebody.pipelines.labels import Cluster, fit_dataset

    body = agebody.SMPLA(agebody.mannequin())
    given = observed_people(body, max(nodes, 1) * shards * people, seed=1)
    ended: dict[str, list[tuple[float, float]]] = {}

    def note(report: Any) -> None:
        for name, its in report.workers.items():
            known = ended.setdefault(name, [])
            if len(known) < its["shards"]:
                known.append((time.perf_counter(), its["seconds"]))

    cluster, ray = Cluster(1), None
    if nodes:
        options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
        ray = Nodes(initialize_head=True, head_node_args=options)
        for _ in range(nodes - 1):
            ray.add_node(num_cpus=1, object_store_memory=100 << 20)
        cluster = Cluster(address=ray.address)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(given, folder, people_per_shard=people)
        fit_dataset(body, folder, Path(folder) / "labels", cluster=cluster, progress=note)
    if ray is not None:
        ray.shutdown()
    span = sum(its[-1][0] - its[0][0] for its in ended.values())
    busy = sum(its[-1][1] - its[0][1] for its in ended.values())
    done = people * sum(len(its) - 1 for its in ended.values())
    rate = round(done / span * len(ended), 2)
    return {"nodes": nodes, "workers": len(ended), "people_per_s": rate, "busy": round(busy / span, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=24_415)
    parser.add_argument("--workers", type=int, default=256)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--nodes", type=int, nargs="*", help="measure Ray on this machine instead")
    given = parser.parse_args()
    if given.nodes is not None:
        rows = [measure(nodes) for nodes in given.nodes]
    else:
        rows = [simulate(given.shards, given.workers, hours * 3600, 120.0) for hours in (24, 4, 1)]
    text = json.dumps(rows, indent=2)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
