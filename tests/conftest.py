"""Shapes in signatures are checked at run time; bodies that many tests share are built once."""

import os

import jaxtyping
import pytest
from jaxtyping import install_import_hook

if os.environ.get("AGEBODY_TYPECHECK", "1") == "1":
    install_import_hook("agebody", "typechecks.checked")

import anny_reference
import torch

from agebody.assets.asset import BodyAsset
from agebody.assets.mannequin import mannequin

# Workers beside each other would only wait for one another's threads.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mannequin_asset() -> BodyAsset:
    return mannequin()


@pytest.fixture(scope="session")
def anny_asset() -> BodyAsset:
    return anny_reference.body()


@pytest.fixture
def unchecked():
    """The library as its users run it: its own errors, not those of the tests' type checker."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
