"""The kernels' code for CUDA, which Warp makes without a GPU: that it compiles, and what is not in it."""

import re

import pytest
import torch
import warp as wp
from agebody_kernels._interop import BLOCK_DIM, KernelSet

ARCH = 90
SHIPPED = [kernels for kernels in KernelSet.sets if kernels.name.startswith("agebody_kernels.")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kernels", SHIPPED, ids=[s.name.split(".")[-1] for s in SHIPPED])
def test_ptx(kernels, dtype, tmp_path, monkeypatch):
    module = kernels.module(dtype)
    monkeypatch.setitem(module.options, "block_dim", BLOCK_DIM)  # as they run
    wp.init()
    wp.compile_aot_module(module, arch=ARCH, module_dir=tmp_path, use_ptx=True)
    (path,) = tmp_path.glob("*.ptx")
    code = path.read_text()
    names = re.findall(r"\.entry (\w+)", code)
    assert len(names) == len(vars(kernels[dtype]))
    # Warp names kernels by these; the oldest versions cannot tell two of one name apart.
    assert len({kernel.key for kernel in vars(kernels[dtype]).values()}) == len(names)
    # Sums in a fixed order: no numbers are added atomically.
    assert not re.findall(r"\b(?:atom|red)\.\S*\.f(?:32|64)", code)
    # What a thread works on stays in registers; CUDA's sine keeps digits of 2 / pi in memory for huge angles.
    if not kernels.name.endswith("kinematics"):
        assert not re.findall(r"\b(?:ld|st)\.local\S*", code)
