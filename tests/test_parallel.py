"""Trainings on many devices come to what one device comes to."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from forestgaps_jax.parallel import Devices, gathered, is_main, on_one_device, said_by_main
from tests.conftest import TINY, flags_of_devices

SAME = {
    "one": ("four", "eight", "fsdp", "together"),
    "parts_of_one": ("parts",),
    "batches_of_one": ("batches",),
}
PAIRS = [(one, many) for one, others in SAME.items() for many in others]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What trainings in a process of eight devices came to."""
    folder = tmp_path_factory.mktemp("devices") / "run"
    run = subprocess.run(
        [sys.executable, "-m", "tests.on_devices", str(folder)],
        env=os.environ | {"XLA_FLAGS": flags_of_devices(8), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(("one", "many"), PAIRS)
def test_losses_are_those_of_one_device(told, one, many):
    np.testing.assert_allclose(told[many]["loss"], told[one]["loss"], rtol=2e-4)


@pytest.mark.parametrize(("one", "many"), PAIRS)
def test_counts_are_those_of_one_device(told, one, many):
    # A pixel whose logit is all but 0 may fall on the other side, as sums are added in another order.
    counts, expected = np.array(told[many]["counts"]), np.array(told[one]["counts"])
    np.testing.assert_array_equal(counts.sum(axis=1), expected.sum(axis=1))
    assert np.abs(counts - expected).sum() <= 4
    np.testing.assert_array_equal(counts[0], expected[0])


@pytest.mark.parametrize(("one", "many"), PAIRS)
def test_parameters_are_those_of_one_device(told, one, many):
    np.testing.assert_allclose(told[many]["params"], told[one]["params"], rtol=2e-3, atol=2e-4)


def test_statistics_of_parts_are_others_than_those_of_the_batch(told):
    assert np.abs(np.subtract(told["parts"]["params"], told["eight"]["params"])).max() > 1e-3


def test_the_state_comes_back_on_one_device(told):
    assert {told[name]["devices"] for name in ("one", "eight", "fsdp")} == {1}


def test_a_checkpoint_of_four_devices_goes_on_alike_on_one_and_on_eight(told):
    one, eight = (told["resumed"][count] for count in ("1", "8"))
    np.testing.assert_allclose(eight, one, rtol=2e-3, atol=2e-4)


def test_neighbours_divide_the_kernels(told):
    assert told["divided"]["kernels"] > 3
    assert told["divided"]["largest_share"] == 0.25


def test_rasters_that_devices_hold_together_give_the_same_batches(told):
    assert told["rasters"]["compared"] > 60
    assert told["rasters"]["different"] == 0


def test_each_device_holds_its_part_and_the_row_of_a_tile(told):
    part = -(-told["rasters"]["pixels"] // 8)
    assert told["rasters"]["parts"] == [part + TINY.tile_size] * 8


def test_parts_on_other_devices_are_refused(told):
    assert "were divided among 8 devices, and these are 4: make the data" in told["rasters"]["refused"]


def test_nothing_is_compiled_twice(told):
    assert not [words for words in told["warnings"] if "compiled again" in words]


# One device


def test_one_device_leaves_everything_where_it_is():
    devices, tree = Devices.of(0), {"x": np.ones(3)}
    assert devices == Devices()
    assert devices.count == devices.count_here == 1
    assert devices.replicate(tree) is devices.place_state(tree) is devices.share(tree) is tree
    assert devices.run(len) is len


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match="devices = 3: there are 1 here"):
        Devices.of(3)


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="fsdp = 2: must divide the 1 devices"):
        Devices.of(1, 2)


@pytest.mark.parametrize(("size", "nearest"), [(6, "4 or 8"), (3, "4;")])
def test_batches_that_do_not_divide_are_refused_with_the_nearest_sizes(monkeypatch, size, nearest):
    monkeypatch.setattr(Devices, "count", 4)
    with pytest.raises(ValueError, match=rf"batch_size = {size}: .* 4 devices .*{nearest}"):
        Devices().check_batch(size)


def test_a_single_process_is_the_main_one_and_says_all():
    assert is_main()
    assert said_by_main(lambda: "Forêt") == "Forêt"


def test_arrays_of_one_device_stay_as_they_are():
    tree = {"x": jax.numpy.arange(3.0), "y": np.ones(2), "key": jax.random.key(0)}
    assert on_one_device(tree)["x"] is tree["x"]
    np.testing.assert_array_equal(gathered(tree["x"]), [0, 1, 2])
