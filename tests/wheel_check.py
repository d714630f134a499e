"""Run by `make wheel` with the installed wheel alone: import, one posed body, one file, the command line."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import agebody

assert "site-packages" in agebody.__file__, agebody.__file__
body = agebody.SMPLA(agebody.mannequin())
pose = torch.zeros(2, 69, requires_grad=True)
out = body(body_pose=pose, age_offset=torch.tensor([0.0, 1.0]))
assert out.vertices.shape == (2, 6890, 3)
out.vertices.square().sum().backward()
assert pose.grad is not None
assert pose.grad.isfinite().all()
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "body.safetensors"
    agebody.save_asset(body.asset, path)
    again = agebody.SMPLA(path)(body_pose=pose, age_offset=torch.tensor([0.0, 1.0]))
    assert torch.equal(again.vertices, out.vertices)
    command = [str(Path(sys.executable).parent / "agebody"), "inspect", str(path)]
    assert "6890" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
# The README of the package index has no link that leads nowhere there.
readme = importlib.metadata.metadata("agebody")["Description"] or ""
assert readme.startswith("# agebody")
assert not re.search(r"\]\((?!https://|#)", readme)
# The kernels are in it; Warp, which they need, is an extra.
assert importlib.util.find_spec("agebody_kernels") is not None
if importlib.util.find_spec("warp") is None:
    try:
        agebody.SMPLA(body.asset, backend="warp")
    except ImportError as error:
        assert "agebody[warp]" in str(error)  # noqa: PT017
    else:
        raise AssertionError("backend='warp' without Warp must raise")
print(f"the wheel of agebody {agebody.__version__} imports, poses, saves and inspects")
