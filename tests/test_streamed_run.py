"""A run whose rasters do not fit: chosen, trained, scored and evaluated from disk by the command line."""

import json

import numpy as np
import pytest

from forestgaps_jax import Config
from forestgaps_jax.cli import main
from forestgaps_jax.data import create_data, memory, read_site, virtual_forest, write_geotiff
from forestgaps_jax.inference import score_baselines
from forestgaps_jax.types import Grid, Site
from tests.test_cli import SMALL, table


def write_plot(folder, seed, left=0.0):
    from rasterio.crs import CRS

    site: Site = virtual_forest(seed, (64, 96), slope=10.0)
    grid = Grid(1.0, 500_000.0 + left, 5_000_000.0, CRS.from_epsg(32617).to_wkt())
    folder.mkdir(exist_ok=True)
    for name, heights in (("DSM", site.dsm), ("CHM", site.chm)):
        write_geotiff(folder / f"plot{seed}_{name}.tif", heights, grid)
    return folder


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """A run over a folder of pairs, of which more than the memory's share is there; and what it printed."""
    folder = tmp_path_factory.mktemp("streamed")
    (folder / "small.toml").write_text(SMALL)
    write_plot(write_plot(folder / "plots", 1), 2, left=200.0)
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as out:
        patch.chdir(folder)
        printed: list[str] = []
        out.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        patch.setattr(memory, "memory_bytes", lambda devices: (1e5, "device"))
        words = ["train", "small.toml", "--sites", "plots", "--min-valid-fraction", "0"]
        assert main(words) == 0
        first = "\n".join(printed)
        printed.clear()
        assert main(words) == 0
    return folder, first, "\n".join(printed)


def test_it_says_why_and_writes_down_what_it_read(streamed):
    folder, printed, _ = streamed
    why = [line for line in printed.splitlines() if line.startswith("rasters are streamed from disk")]
    size, limit = 8 * 2 * 64 * 96 / 2**30, 1e5 / 2**30
    told = f"{size:.3g} GiB, more than 0.25 of the {limit:.3g} GiB of the device (memory_share)"
    assert why == [f"rasters are streamed from disk: {told}"]
    config = Config.from_toml(folder / "runs" / "small" / "config.toml")
    assert config.stream == "always"
    assert config.sites == ()
    assert config.dsm == tuple(str(folder / "plots" / f"plot{n}_DSM.tif") for n in (1, 2))
    assert config.chm == tuple(str(folder / "plots" / f"plot{n}_CHM.tif") for n in (1, 2))
    assert (folder / "runs" / "small" / "figures" / "test_tiles.png").stat().st_size > 10_000


def test_the_same_command_finds_its_run_again(streamed):
    folder, first, second = streamed
    assert "going on with" in second
    assert table(second) == table(first)
    assert [path.name for path in (folder / "runs").iterdir()] == ["small"]


def test_its_baselines_are_those_of_the_same_tiles_in_memory(streamed):
    """Here all pixels are known, so both ways deal the same blocks."""
    folder, *_ = streamed
    config = Config.from_toml(folder / "runs" / "small" / "config.toml")
    sites = [read_site(*pair) for pair in zip(config.dsm, config.chm, strict=True)]
    assert all(site.valid.all() for site in sites)
    places = np.asarray(create_data(sites, config).test.places)  # type: ignore[union-attr]
    expected = score_baselines(sites, places, config)["grey_opening"]
    found = json.loads((folder / "runs" / "small" / "test_metrics.json").read_text())
    assert found["grey_opening"]["confusion_matrix"]["tp"] == expected["confusion_matrix"]["tp"]
    assert found["model"]["n_pixels"] == expected["n_pixels"]


def test_evaluation_reads_its_own_tiles_as_they_were_and_others_as_they_fit(streamed, capsys, tmp_path):
    folder, printed, _ = streamed
    run = str(folder / "runs" / "small")
    assert main(["evaluate", run]) == 0
    out = capsys.readouterr().out
    assert "streamed from disk (stream = always)" in out
    assert table(out) == table(printed)
    write_plot(tmp_path / "other", 3, left=900.0)
    assert main(["evaluate", run, "--sites", str(tmp_path / "other" / "*.tif")]) == 0
    out = capsys.readouterr().out
    assert "held on the device" in out
    assert "24 tiles of other ground" in out
    assert main(["evaluate", run, "--sites", str(tmp_path / "other"), "--stream", "always"]) == 0
    assert table(capsys.readouterr().out)[1:] == table(out)[1:]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--stream", "never"],
            "stream = never would split the run's own rasters in another way than always",
        ),
        (["--sites", "plots/plot1*"], "shows ground of plot1, which trains"),
    ],
    ids=str,
)
def test_scores_that_would_mean_nothing_are_refused(streamed, capsys, monkeypatch, words, says):
    folder, *_ = streamed
    monkeypatch.chdir(folder)
    assert main(["evaluate", str(folder / "runs" / "small"), *words]) == 1
    assert says in capsys.readouterr().err
