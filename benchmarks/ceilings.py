"""Measured upper bounds of a device: its copy bandwidth and its rates of multiplication."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from agebody.pipelines.bench import interleaved

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
"""Far more than any cache holds."""
CACHE_BYTES = 64 << 20
"""More than the last-level cache of current processors and GPUs."""
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
"""Large enough that the product is bound by arithmetic alone."""


@dataclass(frozen=True)
class Ceilings:
    """Bytes (read and written) and floating-point operations per second."""

    copy_bytes: float
    float32_flops: float
    bfloat16_flops: float | None
    """CUDA only: few processors have bfloat16 arithmetic."""

    def seconds(self, *, num_bytes: float, flops: float) -> float:
        """Return the roofline [s]: the longer of the times for memory and for float32 arithmetic."""
        return max(num_bytes / self.copy_bytes, flops / self.float32_flops)

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def measure(device: torch.device, seconds: float) -> Ceilings:
    kind = device.type
    source = torch.ones(COPY_BYTES[kind] // 4, device=device)
    target = torch.empty_like(source)
    side = MATRIX_SIDE[kind]
    a = torch.randn(side, side, device=device)
    low = a.bfloat16()
    functions = {"copy": lambda: target.copy_(source), "float32": lambda: a @ a}
    if kind == "cuda":
        functions["bfloat16"] = lambda: low @ low
    with torch.no_grad():
        times = interleaved(functions, device=device, seconds=seconds)
    rates = {name: 2 * side**3 / timing.median for name, timing in times.items()}
    return Ceilings(2 * COPY_BYTES[kind] / times["copy"].median, rates["float32"], rates.get("bfloat16"))


def blend_roofline(
    ceilings: Ceilings, *, batch: int, num_coefficients: int, num_vertices: int, products: int = 1
) -> float | None:
    """Return the least time of a forward pass [s]: its product, directions and inputs read, vertices written.

    With ``products=2``, of forward + backward: the product with the transposed directions, and the gradient
    read, come on top. None where the vertices fit in a cache, which the copy bandwidth says nothing about.
    """
    width = 3 * num_vertices
    if 4 * batch * width < CACHE_BYTES:
        return None
    numbers = num_coefficients * width + batch * (num_coefficients + width)
    return ceilings.seconds(
        num_bytes=4 * products * numbers, flops=2 * products * batch * num_coefficients * width
    )
