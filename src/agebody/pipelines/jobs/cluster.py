"""Where jobs run: this process, this machine, or a Ray cluster that answers at an address."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from agebody.checks import read_count

_PROBE = 3.0
"""Time limit for the answer of a cluster [s]."""


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
    """Number of retries of a job whose worker was lost, ran out of memory, or could not read or write."""

    @property
    def is_local(self) -> bool:
        """Whether jobs run in this process."""
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
    if cluster.workers is not None:
        read_count("workers", cluster.workers, least=1)
    read_count("max_retries", cluster.max_retries)
    unknown = set(cluster.runtime_env or ())
    if cluster.is_local:
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
        probe(cluster.address)
    return cluster


def probe(address: str) -> None:
    """Check that a Ray cluster answers at an address and accepts this client's token.

    Ray itself would try for most of a minute, and write to standard error meanwhile. Its servers speak gRPC,
    so one call is written here as frames of HTTP/2 (RFC 9113), with headers of HPACK (RFC 7541). A cluster
    that requires a token refuses the call before it reads the method.

    Raises:
        ConnectionError: it does not.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit() or os.environ.get("RAY_USE_TLS", "0") == "1":
        return  # "auto", which Ray looks up on this machine, or encrypted
    until = time.monotonic() + _PROBE
    advice = "give the address that `ray status` or the head node states"
    if int(port) > 65535:
        raise ConnectionError(f"{address}: expected a port up to 65535; {advice}")
    answer = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE) as link:
            link.sendall(_CALL)
            while b"grpc-status" not in answer:
                link.settimeout(max(until - time.monotonic(), 0.1))
                part = link.recv(4096)
                answer += part
                if not part or answer[3:4] not in (b"", _SETTINGS):
                    break
    except socket.gaierror:
        raise ConnectionError(f"{address}: there is no machine named {host}; {advice}") from None
    except OSError as error:
        if not answer:
            late = isinstance(error, TimeoutError)
            why = "did not answer within 3 s" if late else error.strerror or str(error)
            raise ConnectionError(f"{address}: no Ray cluster: {why.lower()}; {advice}") from None
    if answer[3:4] != _SETTINGS:
        raise ConnectionError(f"{address}: something else than a Ray cluster answers; {advice}")
    if b"AuthToken" in answer and os.environ.get("RAY_AUTH_MODE") != "token":
        wanted = "the cluster wants a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to its token"
        raise ConnectionError(f"{address}: {wanted}")


def _frame(kind: bytes, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + kind + bytes((flags, 0, 0, 0, stream)) + payload


def _text(name: bytes) -> bytes:
    return bytes((len(name),)) + name


_SETTINGS = b"\x04"
_CALL = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + _frame(_SETTINGS, 0, 0)
    + _frame(
        b"\x01",  # HEADERS, the last
        4,
        1,
        b"\x83\x86"  # :method POST, :scheme http
        + (b"\x44" + _text(b"/ray.rpc.NodeInfoGcsService/GetClusterId"))  # :path
        + (b"\x41" + _text(b"ray"))  # :authority
        + (b"\x5f" + _text(b"application/grpc"))  # content-type
        + (b"\x40" + _text(b"te") + _text(b"trailers")),
    )
    + _frame(b"\x00", 1, 1, bytes(5))  # DATA, the last: an empty message
)
"""A call without arguments."""


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
