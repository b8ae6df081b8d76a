import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from forestgaps_jax import Config
from forestgaps_jax.cli import main
from forestgaps_jax.data import virtual_forest, write_geotiff
from forestgaps_jax.types import Grid

SMALL = """
epochs = 1
batch_size = 4
features = 2
depth = 1
tile_size = 16
split_buffer = 0.0
thresholds = [5.0, 15.0]
virtual_sites = 2
virtual_size = 64
figure_tiles = 2
"""
FILES = ["config.toml", "metrics.jsonl", "test_metrics.json"]
FIGURES = ["history.png", "test_thresholds.png", "test_tiles.png"]


def table(text: str) -> list[str]:
    """The lines of the table of scores."""
    lines = text.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.lstrip().startswith("height")) :][:4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of virtual forests, and what its training printed."""
    folder = tmp_path_factory.mktemp("cli")
    settings = folder / "small.toml"
    settings.write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as out:
        patch.chdir(folder)
        printed: list[str] = []
        out.setattr("builtins.print", lambda *words, **_: printed.append(" ".join(map(str, words))))
        assert main(["train", str(settings)]) == 0
    return folder / "runs" / "small", "\n".join(printed)


@pytest.fixture(scope="module")
def rasters(tmp_path_factory) -> list[str]:
    """Options that name a DSM and its CHM, on the ground of a UTM zone."""
    from rasterio.crs import CRS

    folder, site = tmp_path_factory.mktemp("rasters"), virtual_forest(9, (64, 96), slope=10.0)
    grid = Grid(1.0, 500_000.0, 5_000_000.0, CRS.from_epsg(32617).to_wkt())
    chm = site.chm.copy()
    chm[:8, :8] = np.nan
    for name, heights in (("dsm", site.dsm), ("chm", chm)):
        write_geotiff(folder / f"plot_{name.upper()}.tif", heights, grid)
    return ["--dsm", str(folder / "plot_DSM.tif"), "--chm", str(folder / "plot_CHM.tif")]


def test_train_leaves_a_whole_run_folder(trained):
    folder, _ = trained
    assert all((folder / name).is_file() for name in FILES)
    assert all((folder / "figures" / name).stat().st_size > 5000 for name in FIGURES)
    assert (folder / "checkpoints").is_dir()
    assert list(folder.glob("events.out.tfevents.*"))


def test_train_ends_with_the_table_the_folder_and_the_next_command(trained):
    folder, printed = trained
    assert "grey opening" in printed
    assert "all gap" in printed
    assert [line.split()[0] for line in table(printed)[1:3]] == ["5", "15"]
    assert f"forestgaps-jax evaluate {Path('runs') / folder.name}" in printed


def test_all_gap_scores_the_gap_fraction_itself(trained):
    folder, _ = trained
    scores = json.loads((folder / "test_metrics.json").read_text())
    assert scores.keys() == {"model", "grey_opening", "all_gap"}
    for threshold, metrics in scores["all_gap"]["threshold_metrics"].items():
        gap = metrics["gap_proportion"]
        assert metrics["iou"] == metrics["precision"] == pytest.approx(gap)
        assert metrics["recall"] == 1.0
        for other in ("model", "grey_opening"):
            assert scores[other]["threshold_metrics"][threshold]["gap_proportion"] == pytest.approx(gap)


def test_evaluate_repeats_the_table_from_the_checkpoint(trained, capsys):
    folder, printed = trained
    assert main(["evaluate", str(folder)]) == 0
    assert table(capsys.readouterr().out) == table(printed)


def test_evaluate_scores_all_tiles_of_other_rasters(trained, rasters, capsys):
    folder, _ = trained
    assert main(["evaluate", str(folder), *rasters]) == 0
    # 64 x 96 px hold 4 x 6 tiles of 16 px; one has a quarter of its pixels without CHM.
    assert "24 tiles of other ground" in capsys.readouterr().out
    scores = json.loads((folder / "evaluation_metrics.json").read_text())
    assert scores["model"]["confusion_matrix"]["total_pixels"] == 2 * (64 * 96 - 8 * 8)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split-buffer", "5"], "test on what was trained on"),
        (["--virtual-slope", "5", "20"], "site virtual-0 shows ground of virtual-0, which trains"),
        (["--virtual-sites", "3"], "shows ground of virtual-0, which trains"),
        (["--dsm", "a.tif"], "each DSM needs its CHM"),
        (["--height-scale", "20"], "height_scale = 20.0 is not what was trained: 10.0"),
    ],
    ids=lambda words: words[0] if isinstance(words, list) else None,
)
def test_evaluate_refuses_what_would_make_the_scores_meaningless(trained, capsys, words, message):
    folder, _ = trained
    assert main(["evaluate", str(folder), *words]) == 1
    assert message in capsys.readouterr().err


def test_a_run_of_mixed_sites_is_evaluated_on_its_own_tiles_and_on_other_rasters_alone(
    rasters, capsys, tmp_path
):
    (tmp_path / "small.toml").write_text(SMALL + 'model_name = "unet_distribution"\n')
    canopy = virtual_forest(77, (64, 64), slope=0.0)
    write_geotiff(tmp_path / "canopy.tif", canopy.chm, Grid(2.0, 3_000.0, 9_000.0))
    words = ["--chm-only", str(tmp_path / "canopy.tif"), "--virtual-share", "0.5", "--site-weights", "2"]
    assert main(["train", str(tmp_path / "small.toml"), *words, "--runs-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "3 site(s)" in printed
    assert main(["evaluate", str(tmp_path / "small")]) == 0
    assert table(capsys.readouterr().out) == table(printed)
    assert main(["evaluate", str(tmp_path / "small"), *rasters]) == 0
    assert "24 tiles of other ground" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "small"), "--seed", "5", "--virtual-share", "0.5"]) == 1
    assert "shows ground of" in capsys.readouterr().err


def test_a_run_is_evaluated_from_any_folder_and_knows_its_rasters_by_any_path(rasters, capsys, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(rasters[1]).parent)
        words = [Path(word).name if word.endswith(".tif") else word for word in rasters]
        (tmp_path / "small.toml").write_text(SMALL)
        runs = ["--runs-dir", str(tmp_path)]
        assert main(["train", str(tmp_path / "small.toml"), *words, *runs, "--figure-tiles", "0"]) == 0
    expected = table(capsys.readouterr().out)
    assert main(["evaluate", str(tmp_path / "small"), *rasters]) == 0
    assert table(capsys.readouterr().out) == expected
    assert main(["evaluate", str(tmp_path / "small"), "--seed", "5"]) == 1
    assert "split the run's own rasters in another way" in capsys.readouterr().err


def test_train_reads_rasters_and_never_overwrites_a_run(trained, rasters, capsys, monkeypatch):
    folder, _ = trained
    before = (folder / "metrics.jsonl").read_text()
    monkeypatch.chdir(folder.parents[1])
    assert main(["train", "small.toml", *rasters, "--epochs", "2"]) == 0
    assert "runs/small-2" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_text() == before
    used = Config.from_toml("runs/small-2/config.toml")
    assert (used.epochs, used.tile_size, used.dsm) == (2, 16, (rasters[1],))


def test_help_lists_every_setting_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in Config().to_dict():
        assert f"--{name.replace('_', '-')}" in text
    assert "Passes over the training tiles" in re.sub(r"\s+", " ", text.replace("│", " "))


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 0, ""),
        (["trian"], 2, "no command 'trian'"),
        (["train", "nowhere.toml"], 1, "nowhere.toml"),
        (["train", "--dsm", "a.tif"], 1, "each DSM needs its CHM"),
        (["train", "--dsm", "a.tif", "--chm", "b.tif"], 1, "a.tif"),
        (["train", "--virtual-size", "64", "--virtual-sites", "1"], 1, "make tile_size"),
        (["train", "--monitor-metric", "val_iuo"], 1, "monitored metric 'val_iuo': did you mean 'val_iou'"),
        (["train", "--model-name", "unte"], 1, "did you mean 'unet'"),
        (["evaluate", "runs/nowhere"], 1, "runs/nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_line_that_helps(words, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == status
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_to_do(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert main(["train"]) == 1
    assert "pip install tyro" in capsys.readouterr().err


def test_an_unknown_option_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--epoch", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_info_prints_versions_and_devices(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^jax \d", text, re.MULTILINE)
    assert "device 0: cpu" in text
