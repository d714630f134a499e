"""Where jobs are done: this process, this machine, or a Ray cluster that answers at an address."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

_PROBE = 3.0
"""Time within which a cluster has to answer [s]."""


class Cluster(NamedTuple):
    """Where jobs run; by default on all CPUs of this machine, with Ray.

    If this process has already connected to Ray, that connection is used, and stays open.
    """

    workers: int | None = None
    """Number of jobs at once. None: one per CPU or, on CUDA, per GPU. 1 without an address runs the jobs in
    this process, without Ray."""
    address: str | None = None
    """Address of a Ray cluster, such as ``"head:6379"``, ``"ray://head:10001"`` or ``"auto"``. None: that of
    the variable ``RAY_ADDRESS``, or else Ray is started on this machine and stopped at the end."""
    device: str | None = None
    """Device of the workers, which may have GPUs when this machine has none; None: that of the body. Each
    worker has its own CUDA device."""
    num_gpus: float = 1.0
    """Number of GPUs per worker on CUDA; 0.5 lets two workers share one."""
    memory: int | None = None
    """Memory that Ray reserves per worker [bytes]."""
    runtime_env: Mapping[str, Any] | None = None
    """Runtime environment of Ray's workers, such as ``{"pip": [...]}`` or ``{"env_vars": {...}}``."""
    max_retries: int = 5
    """Number of further attempts at a job whose worker is lost, or that lacks memory or meets a bad drive."""

    @property
    def is_here(self) -> bool:
        """Return whether the work is done in this process."""
        return self.address is None and self.workers == 1


ALL_CPUS, THIS_PROCESS = Cluster(), Cluster(workers=1)


def check_cluster(cluster: Cluster) -> Cluster:
    """Check where jobs run; return it with the address of ``RAY_ADDRESS`` if it has none.

    Raises:
        ConnectionError: no cluster answers at the address.
        ImportError: Ray is not installed.
        ValueError: a number is too small, or the runtime environment is wrong.
    """
    cluster = cluster._replace(address=cluster.address or os.environ.get("RAY_ADDRESS") or None)
    if cluster.workers is not None and cluster.workers < 1:
        raise ValueError(f"workers: expected at least 1, got {cluster.workers}")
    if cluster.max_retries < 0:
        raise ValueError(f"max_retries: expected at least 0, got {cluster.max_retries}")
    unknown = set(cluster.runtime_env or ())
    if cluster.is_here:
        if unknown:
            raise ValueError("runtime_env: expected none for one worker here, which is this process")
        return cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's next default, of which it warns
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray's servers log, else on stdout
    try:
        import ray
        from ray.runtime_env import RuntimeEnv
    except ImportError as error:
        missing = 'several workers need Ray, which is not installed; pip install "agebody[ray]"'
        raise ImportError(missing) from error
    unknown -= RuntimeEnv.known_fields
    if unknown and "RAY_RUNTIME_ENV_PLUGINS" not in os.environ:
        raise ValueError(f"runtime_env: expected names that Ray knows, such as env_vars, got {min(unknown)}")
    if cluster.address not in (None, "local") and not ray.is_initialized():
        _probe(cluster.address)
    return cluster


def _probe(address: str) -> None:
    """Refuse an address at which no cluster answers; Ray itself would try for most of a minute.

    Ray's servers speak gRPC, so what listens must answer the preface of HTTP/2 (RFC 9113, 3.4) with SETTINGS.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto", which Ray looks up on this machine
    until = time.monotonic() + _PROBE
    advice = "give the address that `ray status` or the head node states"
    if int(port) > 65535:
        raise ConnectionError(f"{address}: expected a port up to 65535; {advice}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE) as link:
            link.settimeout(max(until - time.monotonic(), 0.1))
            link.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
            answer = link.recv(9)
    except socket.gaierror:
        raise ConnectionError(f"{address}: there is no machine named {host}; {advice}") from None
    except OSError as error:
        why = "did not answer within 3 s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        raise ConnectionError(f"{address}: no Ray cluster: {why.lower()}; {advice}") from None
    if len(answer) < 4 or answer[3] != 4:
        raise ConnectionError(f"{address}: something else than a Ray cluster answers; {advice}")


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
