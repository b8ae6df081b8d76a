"""A step is compiled once for each shape; whatever makes it compile again is named."""

import logging
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forestgaps_jax import Callback, evaluate, train
from forestgaps_jax.compilation import _BACKEND, Compilation, CompileGuard, _described, _manage_memory


@jax.jit
def doubled(tree):
    return jax.tree.map(lambda leaf: 2 * leaf, tree)


TREE = {"dsm": np.zeros((4, 16, 16, 1), np.float32), "mask": np.zeros(4, np.float32)}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"dsm": np.zeros((4, 8, 8, 1), np.float32)},
            "batch.dsm was float32[4,16,16,1] and is float32[4,8,8,1]",
        ),
        ({"mask": np.zeros(4, np.int32)}, "batch.mask was float32[4] and is int32[4]"),
        ({"mask": 1.0}, "batch.mask was float32[4] and is float32[] (weakly typed)"),
        ({"valid": np.zeros(3, bool)}, "batch.valid was not there and is bool[3]"),
        ({"mask": None}, "batch.mask was float32[4] and is not there"),
    ],
    ids=str,
)
def test_the_leaf_that_made_it_compile_again_is_named(changed, told, caplog):
    guard = CompileGuard(jax.jit(lambda tree: doubled(tree)), ("batch",))
    guard(TREE)
    guard(TREE)
    assert not caplog.records
    guard(TREE | changed)
    assert told in caplog.text
    assert "the step was compiled again (2 compilations now)" in caplog.text
    assert guard.compilations == 2


def test_an_array_that_is_tied_to_a_device_is_told_apart():
    free = jnp.zeros(4)
    tied = jax.device_put(free, jax.devices()[0])
    assert _described(free) == "float32[4]"
    assert _described(tied).startswith("float32[4] on SingleDeviceSharding")


def test_what_is_no_array_is_named_too(caplog):
    guard = CompileGuard(jax.jit(lambda tree: doubled(tree)), ("batch",))
    guard([TREE["mask"]])
    guard((TREE["mask"],))
    assert "what is not an array in state or batch" in caplog.text


def test_what_was_compiled_before_is_no_news(caplog):
    function = jax.jit(lambda tree: doubled(tree))
    function(TREE)
    guard = CompileGuard(function, ("batch",))
    guard(TREE)
    assert guard.compilations == 0
    guard(TREE | {"mask": np.zeros(5, np.float32)})
    assert "batch.mask was float32[4] and is float32[5]" in caplog.text


def test_given_away_arrays_can_be_told_of(caplog):
    guard = CompileGuard(jax.jit(lambda tree: doubled(tree), donate_argnums=0), ("state",))
    guard(jnp.zeros(4))
    guard(jnp.zeros(5))
    assert "state was float32[4] and is float32[5]" in caplog.text


def test_a_loader_whose_tiles_change_is_told_and_one_whose_last_batch_is_smaller_is_not(
    state, config, caplog
):
    def batch(count: int, side: int) -> dict:
        dsm = np.random.default_rng(0).normal(size=(count, side, side, 1)).astype(np.float32)
        return {"dsm": dsm, "mask": (dsm > 0).astype(np.float32), "threshold": 5.0}

    with caplog.at_level(logging.WARNING):
        train(state, config, {"train": [batch(4, 16), batch(4, 16), batch(1, 16)]})
    assert "compiled again" not in caplog.text
    train(state, replace(config, epochs=1), {"train": [batch(4, 16), batch(4, 32)]})
    assert "batch.dsm was float32[4,16,16,1] and is float32[4,32,32,1] (and 2 more)" in caplog.text


def test_evaluation_tells_of_it_too(state, config, data, caplog):
    evaluate(state, config, data.val)
    assert "compiled again" not in caplog.text
    tile = {"dsm": np.zeros((4, 16, 16), np.float32), "mask": np.zeros((4, 16, 16)), "threshold": 5.0}
    wide = {name: np.repeat(part, 2, 2) if np.ndim(part) else part for name, part in tile.items()}
    evaluate(state, config, [tile, wide])
    assert "batch.dsm was float32[4,16,16,1] and is float32[4,16,32,1]" in caplog.text


def test_a_training_of_several_epochs_compiles_its_steps_once(state, config, data, caplog):
    train(state, replace(config, epochs=3), data)
    assert "compiled again" not in caplog.text


def test_the_first_call_tells_what_it_took_to_compile():
    guard = CompileGuard(jax.jit(lambda tree: doubled(tree)), ("batch",))
    guard(TREE)
    assert guard.compilation is not None
    assert guard.compilation.seconds > 0
    assert not guard.compilation.cached
    guard(TREE)
    assert guard.compilation is None
    other = CompileGuard(guard._function, ("batch",))
    other(TREE)
    assert other.compilation is None


def test_memory_of_a_long_compilation_is_given_back_to_the_system(monkeypatch):
    trims, listeners = [], []
    monkeypatch.setattr("forestgaps_jax.compilation.give_freed_memory_back", lambda: trims.append(1))
    monkeypatch.setattr(
        "jax.monitoring.register_event_duration_secs_listener", lambda listener: listeners.append(listener)
    )
    _manage_memory.__wrapped__()
    listeners[0](_BACKEND, 0.5)
    listeners[0]("/jax/another", 5.0)
    assert trims == []
    listeners[0](_BACKEND, 5.0)
    assert trims == [1]


def test_what_it_took_is_read_at_a_glance():
    assert str(Compilation(8.26, cached=False)) == "compiled in 8.3 s"
    assert str(Compilation(1.2, cached=True)) == "loaded from the compilation cache in 1.2 s"


def test_a_training_tells_once_what_its_step_took_to_compile(state, config, data, tmp_path, capsys):
    class Watch(Callback):
        def on_train_begin(self, logs=None):
            self.seen = []

        def on_batch_end(self, batch, logs=None):
            self.seen.append(logs["compilation"])

    # A loss of no other test, so that the step is compiled here.
    config = replace(config, dice_smooth=0.123, name="run", runs_dir=str(tmp_path), vis_save_frequency=0)
    config = replace(config, use_progress_bar=True, use_tensorboard=False)
    train(state, config, data, [watch := Watch()])
    first, *others = watch.seen
    assert set(others) == {None}
    told = f"the training step was {first}"
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count("the training step was") == log.count(told) == 1
    assert capsys.readouterr().out.splitlines()[0] == told
