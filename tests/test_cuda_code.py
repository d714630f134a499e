"""The kernels' code for CUDA, which Warp makes without a GPU: that it compiles, and what is not in it."""

import re

import pytest
import torch
import warp as wp
from agebody_kernels._interop import KernelSet

ARCH = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ptx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("kernels", KernelSet.sets, ids=[s.name.split(".")[-1] for s in KernelSet.sets])
def test_ptx(kernels, dtype, folder, monkeypatch):
    module = kernels.module(dtype)
    # A library's products of tiles take a minute to link; plain loops in their place do not.
    monkeypatch.setitem(module.options, "enable_mathdx_gemm", False)
    wp.init()
    files = wp.compile_aot_module(module, arch=ARCH, module_dir=folder, use_ptx=True)
    code = next(path for path in files if path.suffix == ".ptx").read_text()
    assert len(re.findall(r"\.entry \w+", code)) == len(vars(kernels[dtype]))
    # Sums in a fixed order: no numbers are added atomically.
    assert not re.findall(r"\b(?:atom|red)\.\S*\.f(?:32|64)", code)
    # What a thread works on stays in registers; CUDA's sine keeps digits of 2 / pi in memory for huge angles.
    if not kernels.name.endswith("kinematics"):
        assert not re.findall(r"\b(?:ld|st)\.local\S*", code)
