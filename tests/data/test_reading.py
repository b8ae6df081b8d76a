import inspect
from dataclasses import replace

import numpy as np
import pytest

from forestgaps_jax import Data
from forestgaps_jax.data import TileSampler, virtual_forest
from forestgaps_jax.data.reading import (
    BatchReader,
    as_data,
    as_evaluation_source,
    read_batches,
    steps_per_epoch,
)

BATCHES = [(np.zeros((size, 4, 4), np.float32), np.zeros((size, 4, 4)), 5.0) for size in (3, 3, 2)]


@pytest.mark.parametrize("as_given", [lambda sites: sites[0], list, tuple], ids=["site", "list", "tuple"])
def test_sites_are_split_by_blocks(as_given, sites, config):
    data = as_data(as_given(sites), config)
    assert all(isinstance(part, TileSampler) for part in (data.train, data.val, data.test))
    assert data.train.shuffle
    assert not data.val.shuffle


def test_sites_given_for_a_part_serve_it_as_a_whole(sites, config):
    data = as_data({"train": sites[0], "val": [sites[1]], "test": BATCHES}, config)
    assert data.train.shuffle
    np.testing.assert_array_equal(data.train.rasters.dsm, sites[0].dsm.ravel())
    np.testing.assert_array_equal(data.val.rasters.dsm, sites[1].dsm.ravel())
    assert len(data.val.places) == 4 * 5
    assert data.test is BATCHES


def test_ground_that_trains_does_not_test(sites, config):
    site = replace(sites[0], name="the same ground")
    with pytest.raises(ValueError, match=r"the same ground shows ground of virtual-\d, which trains"):
        as_data({"train": sites, "val": site}, config)


def test_other_sources_pass_as_they_are(config):
    data = as_data(Data(train=BATCHES), config)
    assert data == Data(train=BATCHES)
    assert as_evaluation_source(BATCHES, config) is BATCHES
    assert isinstance(as_evaluation_source(virtual_forest(0, (32, 32)), config), TileSampler)


@pytest.mark.parametrize("data", [{"training": BATCHES}, {"val": BATCHES}, {"train": BATCHES, "valid": 1}])
def test_other_keys_are_refused(data, config):
    with pytest.raises(ValueError, match="must have train, and may have val and test"):
        as_data(data, config)


@pytest.mark.parametrize("data", [[*BATCHES], 5, None])
def test_what_is_no_data_is_refused_in_words(data, config):
    with pytest.raises(ValueError, match="must be sites, a Data or a mapping"):
        inspect.unwrap(as_data)(data, config)  # past the type checker of the test run


@pytest.mark.parametrize("part", ["val", "test"])
def test_an_empty_source_is_refused_before_the_training(part, config):
    with pytest.raises(ValueError, match=rf"data\.{part} yields no batch"):
        as_data({"train": BATCHES, part: []}, config)
    with pytest.raises(ValueError, match="to evaluate on yields no batch"):
        as_evaluation_source((), config)


@pytest.mark.parametrize("train", [None, 5, "train.npz"])
def test_training_data_that_are_none_are_told(train, config):
    with pytest.raises(ValueError, match=rf"data\.train is a {type(train).__name__}: must be a sampler"):
        inspect.unwrap(as_data)({"train": train}, config)  # past the type checker of the test run


def test_thresholds_that_are_not_listed_are_told(caplog):
    list(read_batches(BATCHES, listed=(5.0,)))
    assert caplog.text == ""
    list(read_batches(BATCHES, listed=(10.125,)))
    assert "threshold 5 m" in caplog.text


def test_a_validation_source_that_can_be_read_once_is_refused(config):
    with pytest.raises(ValueError, match="list_iterator can be read only once"):
        as_data({"train": BATCHES, "val": iter(BATCHES)}, config)


def test_a_sampler_is_scored_at_the_thresholds_asked_for(data, config):
    config.thresholds = (7.5,)
    sampler = as_evaluation_source(data.val, config)
    assert sampler.thresholds.tolist() == [7.5]
    assert sampler.steps_per_epoch == -(-len(data.val.places) // config.batch_size)


def test_a_source_without_a_length_is_counted():
    class Loader:
        def __iter__(self):
            return iter(BATCHES)

    assert steps_per_epoch(Loader()) == steps_per_epoch(BATCHES) == 3
    with pytest.raises(ValueError, match="generator can be read only once"):
        steps_per_epoch(batch for batch in BATCHES)


def test_batches_have_one_shape_from_any_place_on():
    assert [batch.dsm.shape for batch in read_batches(BATCHES)] == [(3, 4, 4, 1)] * 3
    assert [int(batch.valid.sum()) for batch in BatchReader(BATCHES, 1)] == [48, 32]
    assert [batch.dsm.shape for batch in BatchReader(BATCHES, 2)] == [(3, 4, 4, 1)]


def test_a_source_is_told_the_number_of_the_epoch_where_it_asks_for_it():
    class Epochs(list):
        def epoch(self, number):
            return iter(self[number:])

    assert [len(list(BatchReader(Epochs(BATCHES), epoch=number))) for number in (0, 1, 2)] == [3, 2, 1]
    assert len(list(BatchReader(Epochs(BATCHES), 1, epoch=1))) == 1
    assert len(list(read_batches(Epochs(BATCHES)))) == 3
    other = Epochs(BATCHES)
    other.epoch = 1  # of another library, and no method
    assert len(list(BatchReader(other, epoch=2))) == 3


def test_items_that_are_samplers_pass_as_they_are(data):
    items = [data.val, data.val, data.val]
    assert [*read_batches(items, listed=(1.0,))] == items
    assert [*BatchReader(items, 2)] == items[2:]


def test_a_sampler_is_given_once_for_each_step(data):
    assert [*read_batches(data.train)] == [data.train] * data.train.steps_per_epoch
