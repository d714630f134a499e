"""Shapes in signatures are checked at run time; what many tests share is built once."""

import functools
import gc
import os
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import typechecks
import typer.testing

if os.environ.get("AGEBODY_TYPECHECK", "1") == "1":
    jaxtyping.jaxtyped = typechecks.jaxtyped
    source = Path(__file__).parents[1] / "src" / "agebody"
    packages = sorted(path.stem for path in source.iterdir() if not path.stem.startswith("__"))
    jaxtyping.install_import_hook([f"agebody.{package}" for package in packages], "typechecks.checked")

import anny_reference
import torch

from agebody.assets.asset import BodyAsset
from agebody.assets.mannequin import mannequin

SLOW = (
    "docs",
    "labels_scale",
    "fitting_images",
    "fitting_scans",
    "synthesis",
    "release",
    "train",
    "crowd",
    "fitting_points",
    "nets_interaction",
    "hands_and_faces",
    "kernels",
    "compat_smplx",
    "compat_smplx_hands",
    "fitting_sequences",
    "nets_lifter",
    "context",
    "context_layers",
    "views",
    "nets_heads",
    "fitting_convert",
    "benchmarks",
    "measure_shape",
    "cuda_code",
    "files",
    "blend_skin",
    "cli_fit",
    "fitting_hands",
    "compile",
    "fuzz",
    "predict",
    "proximity",
    "fitting_scans_input",
    "priors",
    "cameras_weak",
    "bench",
    "backend",
    "commands",
    "evaluate_coco",
    "fitting_jacobian",
    "keypoints",
    "labels",
    "videos",
    "faults",
)
"""Files of tests that take over 5 seconds of one core, the longest first. Workers begin with these, so that
none is left with a long one at the end; `make check` leaves them out."""

NO_CUDA = "no CUDA device: what runs there was not tested"

# On a busy machine the first example of a test may take long; speed is measured elsewhere.
hypothesis.settings.register_profile("agebody", deadline=None)
hypothesis.settings.load_profile("agebody")

# Hundreds of tests run a command: its parser, read from signatures, takes longer than most of them.
typer.testing._get_command = functools.cache(typer.testing._get_command)

# Workers beside each other would only wait for one another's threads.
torch.set_num_threads(1)

# Ray's workers are nice: beside tests that run all the time, some would start after minutes.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Keep modules and tests, a million objects that live to the end, out of later garbage collections."""
    gc.enable()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before fixtures
def pytest_runtest_setup() -> None:
    """Give every test the same random numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)  # before -m selects by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put slow tests first, and mark them and those on CUDA, of a device among others or of CUDA alone."""
    rank = {f"test_{name}": i for i, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))
    for item in items:
        if item.path.stem in rank:
            item.add_marker(pytest.mark.slow)
        callspec = getattr(item, "callspec", None)
        if callspec is not None and callspec.params.get("device") == "cuda":
            item.add_marker(pytest.mark.cuda)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=NO_CUDA))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if any(NO_CUDA in str(report.longrepr) for report in terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(NO_CUDA)


@pytest.fixture(scope="session")
def mannequin_asset() -> BodyAsset:
    return mannequin()


@pytest.fixture(scope="session")
def anny_asset() -> BodyAsset:
    return anny_reference.body()


@pytest.fixture(scope="session")
def anny_hands(anny_asset: BodyAsset) -> BodyAsset:
    return anny_reference.build.anny_body(hands=True)


@pytest.fixture
def unchecked():
    """The library as its users run it: its own errors, not those of the tests' type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
