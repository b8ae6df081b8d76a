"""Shared pieces of the tests: the smallest run that is whole."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
from xdist.scheduler import LoadFileScheduling

from forestgaps_jax import Config, Data, TrainState, create_state
from forestgaps_jax.data import create_data, virtual_forest
from forestgaps_jax.models import create_model_from_config
from forestgaps_jax.types import Site

# What one test has compiled, another test, worker, process or later run need not: half of the suite's time.
CACHE = str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

# Most of the suite is compilation of programs that run for milliseconds: XLA takes less than half as long
# if it does not optimise what it generates. Subprocesses inherit it; notebooks and the README's commands in
# `.ci/run` compile as users do.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
)


def flags_of_devices(count: int) -> str:
    """``XLA_FLAGS`` of a process of so many CPU devices, which compiles as quickly."""
    return f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={count}"


# The same examples in every run: a change that lands is the one that was tested.
hypothesis.settings.register_profile("steady", derandomize=True, deadline=None)
hypothesis.settings.load_profile("steady")

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

TINY = Config(
    epochs=2,
    batch_size=4,
    features=4,
    depth=1,
    tile_size=16,
    split_buffer=0.0,
    thresholds=(5.0, 15.0),
    learning_rate=1e-2,
    use_progress_bar=False,
    figure_tiles=0,
    vis_save_frequency=0,
)

DRAWN: dict[str, Any] = {"vis_save_frequency": 5, "figure_tiles": 2}
"""Settings of a run that draws, which takes seconds."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    """Tests of a file stay in one worker: a fixture that takes minutes is made once."""
    return LoadFileScheduling(config, log)


@pytest.fixture
def shared_data() -> Path:
    """The folder of real rasters beside the checkout; the test is skipped where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real rasters at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def config() -> Config:
    """Settings of a run of a few seconds; one's own copy."""
    return replace(TINY)


@pytest.fixture(scope="session")
def sites() -> list[Site]:
    """Two small virtual forests."""
    return [virtual_forest(seed, (64, 80), slope=20.0) for seed in (1, 2)]


@pytest.fixture(scope="session")
def data(sites: list[Site]) -> Data:
    """Samplers over the sites: a number of training tiles that the batch size does not divide."""
    data = create_data(sites, TINY)
    assert data.train.places.shape[0] % TINY.batch_size  # type: ignore[union-attr]
    return data


@pytest.fixture
def state() -> TrainState:
    """A new state of the tiny network."""
    return create_state(create_model_from_config(TINY), TINY)
