"""A training that goes on from a checkpoint: its callbacks, its data, its versions."""

import threading
import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Callback, train
from forestgaps_jax.callbacks import CheckpointingCallback, LearningRateMonitor, Timer
from forestgaps_jax.checkpoint import DamagedCheckpoint, contents, latest
from tests.test_loop import equal


class StopAt(Callback):
    """Stops at a step of an epoch, once."""

    def __init__(self, epoch: int, batch: int):
        self.place = epoch, batch

    def on_batch_end(self, batch, logs=None):
        if (logs["epoch"], batch) == self.place:
            self.run.stop("a test")


class Counter(Callback):
    """A user's callback, which counts."""

    def on_train_begin(self, logs=None):
        self.seen = 0

    def state_dict(self):
        return {"seen": self.seen, "more": {"list": [np.arange(2)]}}

    def load_state_dict(self, state):
        assert state["more"]["list"][0].tolist() == [0, 1]
        self.seen = int(state["seen"])

    def on_batch_end(self, batch, logs=None):
        self.seen += 1


@pytest.fixture
def named(config, tmp_path):
    return replace(config, name="run", runs_dir=str(tmp_path), vis_save_frequency=0, use_tensorboard=False)


@pytest.mark.parametrize("place", [(0, 3), (1, 0)], ids=str)
def test_callbacks_go_on_where_they_were(state, named, data, place):
    def callbacks():
        return Counter(), LearningRateMonitor(), Timer(), Counter()

    whole = callbacks()
    train(state, replace(named, name=""), data, whole)
    train(state, named, data, [*callbacks(), StopAt(*place)])
    resumed = callbacks()
    train(state, named, data, resumed, resume="auto")
    steps = named.epochs * data.train.steps_per_epoch
    assert resumed[0].seen == resumed[3].seen == whole[0].seen == steps
    assert resumed[1].steps == whole[1].steps == list(range(steps))
    assert resumed[1].rates == whole[1].rates
    assert len(resumed[2].ms_per_step) == named.epochs


def test_what_callbacks_have_kept_that_are_no_more_is_told(state, named, data, caplog):
    train(state, named, data, [Counter(), StopAt(0, 2)])
    train(state, named, data, resume="auto")
    assert "the checkpoint has what callbacks have kept that this training lacks: Counter" in caplog.text


def test_the_best_weights_are_given_back_though_the_training_was_stopped_after_them(state, named, data):
    """The best epoch, of the most loss here, is the first: its weights have to outlive the stop."""
    settings = replace(
        named,
        epochs=3,
        use_early_stopping=True,
        early_stopping_restore_best=True,
        early_stopping_monitor="train_loss",
        early_stopping_mode="max",
    )
    expected, history = train(state, replace(settings, name=""), data)
    assert int(np.argmax(history["train_loss"])) == 0
    last, _ = train(state, replace(settings, name="", early_stopping_restore_best=False), data)
    assert not equal(expected, last)
    train(state, settings, data, [StopAt(1, 1)])
    again, _ = train(state, settings, data, resume="auto")
    assert equal(again, expected)


def test_time_goes_on_from_that_of_the_epoch_begun(state, named, data):
    class Slow(Callback):
        def on_batch_end(self, batch, logs=None):
            if batch == 0:
                time.sleep(0.7)

    train(state, replace(named, epochs=1), data, [Slow(), StopAt(0, 1)])
    _, history = train(state, replace(named, epochs=1), data, resume="auto")
    assert history["epoch_times"][0] > 0.7


def test_other_settings_are_told_where_a_folder_is_given(state, named, data, tmp_path, caplog):
    train(state, named, data, [StopAt(0, 2)])
    train(state, replace(named, learning_rate=0.5), data, folder=tmp_path / "run", resume="auto")
    assert "with other settings: learning_rate = 0.01 in the checkpoint, 0.5 here" in caplog.text


def test_a_state_whose_checkpoint_is_damaged_goes_on_by_itself_and_from_no_other(
    state, named, data, tmp_path
):
    """The place in the epoch is that of the state, and never that of an older checkpoint."""
    part, history = train(state, named, data, [StopAt(1, 1)])
    place = tmp_path / "run" / "checkpoints" / str(int(part.step))
    next(path for path in place.rglob("*") if path.is_file() and path.name != "record.json").write_bytes(b"")
    with pytest.raises(DamagedCheckpoint):
        train(part, named, data, folder=tmp_path / "run", history=history)
    done, _ = train(part, replace(named, name=""), data, history=history)
    assert equal(done, train(state, replace(named, name=""), data)[0])


def test_what_callbacks_keep_has_to_be_arrays(state, named, data):
    class Wrong(Callback):
        def state_dict(self):
            return {"words": "these"}

    with pytest.raises(TypeError, match="callbacks/Wrong/words = 'these' cannot be saved"):
        train(state, named, data, [Wrong()])


def test_a_callback_that_raises_at_the_end_costs_no_checkpoint(state, named, data, tmp_path):
    class Wrong(Callback):
        def on_train_end(self, logs=None):
            raise RuntimeError("a user's mistake")

    with pytest.raises(RuntimeError, match="a user's mistake"):
        train(state, named, data, [Wrong()])
    steps = named.epochs * data.train.steps_per_epoch
    assert latest(tmp_path / "run" / "checkpoints") == steps
    assert not any(thread.name == "checkpoints" for thread in threading.enumerate())


def test_other_data_are_refused(state, named, data):
    train(state, named, data, [StopAt(0, 2)])
    fewer = replace(data, train=replace(data.train, places=data.train.places[:9]))
    steps = data.train.steps_per_epoch
    with pytest.raises(ValueError, match=rf"was trained on {steps} batches an epoch, and data\.train has 3"):
        train(state, named, fewer, resume="auto")


def test_other_versions_are_told(state, named, data, caplog, monkeypatch):
    real = contents.version
    monkeypatch.setattr(contents, "version", lambda name: "0.0.1" if name == "optax" else real(name))
    train(state, named, data, [StopAt(0, 2)])
    monkeypatch.undo()
    train(state, named, data, resume="auto")
    assert f"other versions (optax 0.0.1, now {real('optax')})" in caplog.text


def test_a_finished_run_is_returned_as_it_is(state, named, data):
    done, history = train(state, named, data)
    again, same = train(state, named, data, resume="auto")
    assert equal(done, again)
    assert same["val_loss"] == history["val_loss"]


def test_without_a_checkpoint_it_begins_at_the_given_state(state, named, data, tmp_path):
    one, _ = train(state, named, data, resume="auto")
    other, _ = train(state, replace(named, name=""), data)
    assert equal(one, other)


@pytest.fixture
def arrays(data):
    """Three batches, the last one smaller, as a loader yields them."""
    batches = [jax.device_get(data.val.sample(jnp.int32(number))) for number in range(3)]
    items = [{"dsm": b.dsm, "mask": b.mask, "threshold": b.threshold, "valid": b.valid} for b in batches]
    return [*items[:2], {name: value[:2] for name, value in items[2].items()}]


def test_the_order_of_a_plain_iterable_is_said_not_to_be_resumed(state, named, arrays, caplog):
    class Loader:
        def __len__(self):
            return len(arrays)

        def __iter__(self):
            return iter(arrays)

    train(state, named, {"train": Loader()}, [StopAt(0, 0)])
    assert "ORDER" not in caplog.text
    train(state, named, {"train": Loader()}, resume="auto")
    assert "THE ORDER OF data.train IS NOT RESUMED: the first 1 batches of Loader" in caplog.text
    assert caplog.text.count("ORDER") == 1


def test_an_iterator_that_can_tell_its_place_goes_on_there(state, named, arrays, caplog):
    """As those of Grain can, whose state is a mapping or bytes."""
    read = []

    class Places:
        def __init__(self):
            self.next = 0

        def __iter__(self):
            return self

        def __next__(self):
            if self.next == len(arrays):
                raise StopIteration
            read.append(self.next)
            self.next += 1
            return arrays[self.next - 1]

        def get_state(self):
            return b"%d" % self.next

        def set_state(self, state):
            self.next = int(state)

    class Source:
        def __len__(self):
            return len(arrays)

        def __iter__(self):
            return Places()

    train(state, named, {"train": Source()}, [StopAt(1, 1)])
    resumed, _ = train(state, named, {"train": Source()}, resume="auto")
    assert read == [0, 1, 2, 0, 1, 2]
    assert "ORDER" not in caplog.text
    assert equal(resumed, train(state, replace(named, name=""), {"train": arrays})[0])


def test_checkpoints_within_an_epoch_come_by_the_clock(state, named, data, tmp_path):
    saves = []

    class Watched(CheckpointingCallback):
        def _save(self, score=None):
            saves.append(int(self.run.state.step))
            super()._save(score)

    steps = data.train.steps_per_epoch
    train(state, replace(named, epochs=1, save_minutes=1e-9), data, [Watched()])
    assert saves == [*range(1, steps + 1), steps]
    saves.clear()
    train(state, replace(named, epochs=1, save_minutes=0.0), data, [Watched()])
    assert saves == [steps]
