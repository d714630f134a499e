"""The kernels' code for CUDA, which Warp makes without a GPU: that it compiles, and what is not in it."""

import re
import struct

import pytest
import torch
import warp as wp
from agebody_kernels._interop import BLOCK_DIM, KernelSet

ARCH = 90
REGISTERS = 168
"""Of 65,536 on a multiprocessor: three blocks, which hide one another's waiting."""
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


@pytest.mark.parametrize("kernels", SHIPPED, ids=[s.name.split(".")[-1] for s in SHIPPED])
def test_machine_code_keeps_its_numbers_in_registers(kernels, tmp_path, monkeypatch):
    """Of float32, compiled as for a launch; the assembler may spill what PTX shows in registers."""
    module = kernels.module(torch.float32)
    monkeypatch.setitem(module.options, "block_dim", BLOCK_DIM)
    wp.init()
    wp.compile_aot_module(module, arch=ARCH, module_dir=tmp_path, use_ptx=False)
    (path,) = tmp_path.glob("*.cubin")
    registers, frames = read_resources(path.read_bytes())
    assert len(registers) == len(vars(kernels[torch.float32]))
    assert max(registers) <= REGISTERS, registers
    digits = 32 if kernels.name.endswith("kinematics") else 0  # bytes of 2 / pi, as above
    assert max(frames) <= digits, frames


def read_resources(cubin):
    """Return the registers of a thread and the bytes of its stack frame, of each function of an ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    start = sections[names][4]
    (info,) = (
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin[start + name :].startswith(b".nv.info\0")
    )
    found = {0x2F: [], 0x11: []}  # CUDA's numbers of the two attributes
    while info:
        form, attribute, length = struct.unpack_from("<BBH", info)
        if attribute in found:
            found[attribute].append(struct.unpack_from("<II", info, 4)[1])
        info = info[4 + (length if form == 4 else 0) :]  # other forms hold a value in place of a length
    return found.values()
