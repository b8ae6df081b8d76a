"""One tiny run for all tests of the report, of a name that is HTML."""

import json
import shutil
from pathlib import Path

import pytest

from forestgaps_jax import Config
from forestgaps_jax.experiment import run_training
from forestgaps_jax.report import write_report

NAME = '<b>bold & "quoted"'


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A run folder of virtual forests; read it, do not change it."""
    config = Config(
        name=NAME,
        runs_dir=str(tmp_path_factory.mktemp("runs")),
        epochs=2,
        batch_size=5,
        features=2,
        depth=1,
        tile_size=16,
        split_buffer=0.0,
        thresholds=(5.0, 15.0),
        virtual_sites=2,
        virtual_size=64,
        figure_tiles=0,
        use_progress_bar=False,
        use_tensorboard=False,
        learning_rate=1e-2,
    )
    return run_training(config)[0]


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """One's own copy of the run."""
    return Path(shutil.copytree(trained, tmp_path / trained.name))


@pytest.fixture(scope="session")
def page(trained, tmp_path_factory) -> Path:
    """The report of the run."""
    return write_report(trained, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="session")
def scores(trained) -> dict:
    """The test scores as they lie in the run folder."""
    return json.loads((trained / "test_metrics.json").read_text())
