"""Two processes train on one stream: they come to what one comes to, count together, stop and go on."""

import copy
import json

import jax
import numpy as np
import pytest

from forestgaps_jax import Config, checkpoint
from forestgaps_jax.data import create_stream
from tests.data.test_shared_streams import at
from tests.data.test_stream import cut_off, write_pair
from tests.in_processes import end, free_port, start
from tests.survival import TRAIN, Runner

SETTINGS = """
epochs = 2
batch_size = 4
features = 2
depth = 1
tile_size = 16
split_buffer = 0.0
thresholds = [5.0, 10.0, 15.0]
sites = ["plots"]
stream = "always"
figure_tiles = 0
vis_save_frequency = 0
gap_scores = false
use_tensorboard = false
use_progress_bar = false
"""


def write_rasters(folder):
    """Plots to train on, of which the second is cut off; and a row of two pairs, two tiles each."""
    write_pair(folder / "plots", 0, (64, 96))
    _, chm = write_pair(folder / "plots", 1, (80, 96), **at(200))
    cut_off(chm, 0.7)
    for number in range(2):
        write_pair(folder / "row", number, (16, 32), **at(32 * number))


def run_of(runner, name):
    other = copy.copy(runner)
    other.run_folder = runner.folder / "runs" / name
    return other


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    write_rasters(folder)
    return Runner(folder, SETTINGS)


@pytest.fixture(scope="module")
def alone(runner):
    """What one process of one device comes to."""
    [(status, _, errors)] = end([start([*TRAIN, "--name", "alone"], runner.folder, devices=1)])
    assert status == 0, errors[-3000:]
    return run_of(runner, "alone")


def start_pair(runner, what):
    port = str(free_port())
    words = ["-m", "tests.streaming", port]
    return end([start([*words, str(number), what], runner.folder, devices=1) for number in range(2)])


@pytest.fixture(scope="module")
def stopped(runner):
    """How two processes ended of which the second got SIGTERM, and the record of their last checkpoint."""
    ends, run = start_pair(runner, "stop"), run_of(runner, "stopped")
    assert run.steps(), ends[0][2][-3000:]
    record = run.run_folder / "checkpoints" / str(run.steps()[-1]) / "record.json"
    return ends, json.loads(record.read_text())


@pytest.fixture(scope="module")
def told(runner, stopped):
    """What two processes have told that went on, trained anew, and met what is refused."""
    ends = start_pair(runner, "goon")
    assert [status for status, _, _ in ends] == [0, 0], ends[0][2][-3000:]
    return [json.loads((runner.folder / f"told{number}.json").read_text()) for number in range(2)]


def entries(run):
    return [json.loads(line) for line in (run.run_folder / "metrics.jsonl").read_text().splitlines()]


def unread_by(runner, epoch, share=(0, 1), batches=None):
    """Numbers of the training tiles that a process cannot read."""
    config = Config.from_toml(runner.folder / "run.toml")
    source = create_stream(runner.folder / "plots", config, share=share).train
    items = source.epoch(epoch)
    for _ in range(len(source) if batches is None else batches):
        next(items)
    return {number for entry in items.unread.state().values() for number in entry["tiles"]}


# The same as one process


def test_a_stream_comes_to_what_one_process_comes_to(runner, alone, told):
    together = run_of(runner, "whole")
    assert [one["whole"] for one in told] == [0, 0]
    histories = [json.loads((run.run_folder / "history.json").read_text()) for run in (alone, together)]
    for name in ("train_loss", "val_loss"):
        np.testing.assert_allclose(histories[1][name], histories[0][name], rtol=2e-4)
    # All the pixels that one process sees, and as often: whether a gap is found may hang on rounding.
    for phase in ("train_metrics", "val_metrics"):
        for one, two in zip(*(history[phase] for history in histories), strict=True):
            assert two["n_pixels"] == one["n_pixels"]
            matrices = one["confusion_matrix"], two["confusion_matrix"]
            assert matrices[1]["total_gap_pixels"] == matrices[0]["total_gap_pixels"]
            assert sum(abs(matrices[1][name] - matrices[0][name]) for name in ("tp", "fp", "fn", "tn")) <= 4
    tests = [json.loads((run.run_folder / "test_metrics.json").read_text()) for run in (alone, together)]
    assert tests[1]["grey_opening"] == tests[0]["grey_opening"]
    assert tests[1]["model"]["n_pixels"] == tests[0]["model"]["n_pixels"]


def test_its_parameters_are_those_of_one_process(runner, alone, told):
    one, two = (
        jax.tree.leaves(checkpoint.restore(run.run_folder / "checkpoints", run.like()).state.params)
        for run in (alone, run_of(runner, "whole"))
    )
    for expected, leaf in zip(one, two, strict=True):
        np.testing.assert_allclose(leaf, expected, rtol=2e-3, atol=2e-4)


def test_each_tile_is_read_by_one_of_them_once_also_where_the_last_batch_is_left_to_the_first(runner):
    config = Config.from_toml(runner.folder / "run.toml")
    shares = [create_stream(runner.folder / "plots", config, share=(n, 2)).train for n in range(2)]
    tiles = len(shares[0].places)
    assert tiles % config.batch_size == 1
    assert {len(share) for share in shares} == {-(-tiles // config.batch_size)}
    for epoch in range(2):
        read = [[list(item.names) for item in share.epoch(epoch)] for share in shares]
        assert read[1][-1] == []
        names = [name for part in read for names in part for name in names]
        assert sorted(names) == sorted(shares[0].describe(number) for number in range(tiles))


def test_each_compiles_its_step_once(runner, told):
    assert [one["compiled again"] for one in told] == [[], []]
    for name, starts in (("stopped", 2), ("whole", 1)):
        log = (runner.folder / "runs" / name / "train.log").read_text()
        assert log.count("the training step was ") <= starts


# Stopped


def test_a_signal_to_one_ends_both_within_the_epoch(stopped):
    ends, record = stopped
    assert [status for status, _, _ in ends] == [143, 143]
    assert "training interrupted by SIGTERM after step" in ends[0][2]
    position = record["info"]["position"]
    assert (position["epoch"], position["batch"]) == (0, record["step"])
    assert 1 < record["step"] < 25


def test_the_checkpoint_has_what_either_could_not_read(runner, stopped):
    step, iterator = stopped[1]["step"], stopped[1]["info"]["position"]["source"]["iterator"]
    [entry] = iterator["unread"].values()
    assert set(entry["tiles"]) == unread_by(runner, 0, batches=step)
    assert unread_by(runner, 0, (1, 2), step)


def test_the_same_command_goes_on_and_ends_as_if_never_stopped(runner, told):
    assert [one["went on"] for one in told] == [0, 0]
    stopped, whole = (run_of(runner, name) for name in ("stopped", "whole"))
    assert stopped.result() == whole.result()


# What cannot be read


def test_the_main_one_tells_and_records_the_tiles_that_any_could_not_read(runner, alone, told):
    shares = [unread_by(runner, 0, (number, 2)) for number in range(2)]
    assert all(shares)
    unread, total = len(shares[0] | shares[1]), len(shares[0]) + len(shares[1])
    assert unread == total
    for name in ("after going on", "after the whole"):
        lines = told[0][name]
        assert [line.partition(" skipped")[0] for line in lines] == [
            f"{unread} of 97 tiles were",
            "2 of 8 tiles were",
        ] * 2
        assert f"{unread} of {runner.folder / 'plots' / '1_CHM.tif'}: not a raster" in lines[0]
        assert told[1][name] == []
    for run in (alone, run_of(runner, "whole"), run_of(runner, "stopped")):
        for entry in entries(run):
            assert entry["train_metrics"]["unread_tiles"] == unread
            # Three thresholds, two samples a process: both tried the same tile, which counts once.
            assert entry["val_metrics"]["unread_tiles"] == 2


def test_a_file_that_only_the_second_reads_is_told_by_the_first(told):
    assert [one["cut off"]["here"] for one in told] == [2, 0]
    assert [one["cut off"]["unread"] for one in told] == [{"row/1_DSM.tif": 2}] * 2
    [line] = told[0]["said"]
    assert line.startswith("2 of 4 tiles were skipped in this epoch, as they could not be read: 2 of row/1_D")
    assert told[1]["said"] == []


def test_what_one_cannot_open_is_an_error_in_all(told):
    assert [one["without a folder"] for one in told] == [1, 1]
    missing = "[Errno 2] No such file or directory: 'nowhere'"
    assert [one["refused"]["missing"] for one in told] == [
        f"OSError: in process 1 of several: {missing}",
        f"FileNotFoundError: {missing}",
    ]
    assert [one["words"] for one in told] == [["", "ééé"]] * 2


# Shares that are not even


def test_a_process_without_a_tile_reads_as_many_batches(told):
    assert [one["empty"] for one in told] == [
        {"batches": 1, "here": 2, "unread": {}},
        {"batches": 1, "here": 0, "unread": {}},
    ]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("lists", "the batches and tiles of data.val must be the same in all processes; not so in [1] of 2"),
        ("uneven", "the batches and tiles of data.train must be the same in all processes; not so in [1]"),
        ("elsewhere", "the batches and tiles of data.train must be the same in all processes; not so in [1]"),
        ("share", "a stream has share = (0, 1), in process ({}, 2): leave it out"),
        ("batch", "batch_size = 3: must be a multiple of the 2 processes"),
    ],
)
def test_sources_that_are_not_even_are_refused_in_all(told, case, message):
    for number, one in enumerate(told):
        assert one["refused"][case].startswith(f"ValueError: {message.format(number)}")


def test_streams_of_the_same_tiles_are_not_refused(told):
    assert [one["refused"]["even"] for one in told] == [""] * 2
