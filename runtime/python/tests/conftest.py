"""Every device of this machine that computes, one of each backend."""

import numpy as np
import pytest

import ropeway

_FOUND = [info.device for info in ropeway.devices() if info.execution != "recorded" and info.device.endswith(":0")]


@pytest.fixture(params=_FOUND)
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(params=[device for device in _FOUND if device != "cpu:0"])
def other_device(request: pytest.FixtureRequest) -> str:
    """A device that is not the host's own memory."""
    name: str = request.param
    return name


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261128)
