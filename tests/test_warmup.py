"""Compiling kernels ahead: the function, the command, and the message while a first call compiles."""

import time

import pytest
import torch
from typer.testing import CliRunner

from agebody.pipelines.cli import app

pytest.importorskip("warp", reason="the kernels need the extra agebody[warp]")

import agebody_kernels
from agebody_kernels import _interop
from agebody_kernels._interop import KernelSet
from devices import DEVICES

SUBJECTS = ("age", "kinematics", "regression", "skinning")


def run(*arguments):
    return CliRunner().invoke(app, ["warmup", *arguments])


@pytest.mark.parametrize("device", DEVICES)
def test_loads_every_module(device):
    told = []
    seconds = agebody_kernels.warmup(device, (torch.float32, torch.float64), progress=told.append)
    expected = {f"{s.name}.{t}" for s in KernelSet.sets for t in ("float32", "float64")}
    assert {f"agebody_kernels.{subject}.float64" for subject in SUBJECTS} <= expected
    assert set(seconds) == set(told) == expected
    loaded = {module for module, _ in _interop._LOADED}
    for kernels in KernelSet.sets:
        assert {id(kernels.module(t)) for t in (torch.float32, torch.float64)} <= loaded
    again = agebody_kernels.warmup(device)
    assert set(again) == {name for name in expected if name.endswith("float32")}
    assert sum(again.values()) < 0.1  # nothing is left to do


def test_other_types_and_devices_are_refused():
    with pytest.raises(TypeError, match="dtypes: expected float32 or float64, got torch.float16"):
        agebody_kernels.warmup("cpu", (torch.float16,))
    with pytest.raises(RuntimeError, match="run on cpu and cuda tensors, got meta"):
        agebody_kernels.warmup("meta")


def test_command_reports_its_result():
    result = run("--device", "cpu", "--dtype", "both")
    assert result.exit_code == 0, result.output
    for word in (*SUBJECTS, "float32", "float64", "cpu"):
        assert word in result.stdout
    everywhere = run()
    assert everywhere.exit_code == 0, everywhere.output
    assert "float64" not in everywhere.stdout
    assert all(f"cuda:{i}" in everywhere.stdout for i in range(torch.cuda.device_count()))


def test_command_errors_name_the_cause(monkeypatch):
    for arguments in (("--device", "tpu"), ("--device", "cuda:99"), ("--dtype", "float16")):
        result = run(*arguments)
        assert result.exit_code == 2
        assert arguments[0] in result.stderr
    monkeypatch.setattr("agebody.engine.backend.has_warp", lambda: False)
    result = run("--device", "cpu")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith("error: ")
    assert "agebody[warp]" in line


def test_a_device_that_warp_does_not_see_is_one_line(monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("Warp finds no CUDA device")

    monkeypatch.setattr(agebody_kernels, "warmup", refuse)
    result = run("--device", "cpu")
    assert result.exit_code == 1
    assert "error: Warp finds no CUDA device" in result.stderr


def test_long_steps_are_announced_on_standard_error(monkeypatch, capsys):
    monkeypatch.setattr(_interop, "_PATIENCE", 0.05)
    with _interop._announced("compiling this"):
        pass
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
    with _interop._announced("compiling this"):
        time.sleep(0.3)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == "compiling this (once; `agebody warmup` does it ahead)\n"
