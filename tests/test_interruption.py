"""Ctrl-C, SIGTERM and notices of preemption, in training, validation and test."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import pytest

from forestgaps_jax import Callback, Trainer, create_state, train
from forestgaps_jax.checkpoint import latest, restore
from forestgaps_jax.interruption import Interruption, TrainingInterrupted, TrainingTerminated
from forestgaps_jax.models import create_model_from_config
from tests.survival import SETTINGS, Runner
from tests.test_loop import equal

ERRORS = {signal.SIGINT: TrainingInterrupted, signal.SIGTERM: TrainingTerminated}


class Signal(Callback):
    """Sends a signal to its own process, once."""

    def __init__(self, kind: signal.Signals, event: str, epoch: int = 0, batch: int = 1):
        self.kind, self.event, self.place, self.epoch = kind, event, (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_batch_begin(self, batch, logs=None):
        self._send("batch", batch)

    def on_validation_batch_begin(self, batch, logs=None):
        self._send("validation", batch)

    def on_epoch_end(self, epoch, logs=None):
        self._send("epoch", 1)

    def _send(self, event, batch):
        if event == self.event and (self.epoch, batch) == self.place:
            os.kill(os.getpid(), self.kind)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM], ids=lambda kind: kind.name)
@pytest.mark.parametrize("event", ["batch", "validation", "epoch"])
def test_a_training_ends_at_the_next_step_with_a_checkpoint_and_goes_on_exactly(
    state, config, data, tmp_path, caplog, kind, event
):
    config = replace(config, name="run", runs_dir=str(tmp_path), vis_save_frequency=0, use_tensorboard=False)
    steps = data.train.steps_per_epoch
    with pytest.raises(ERRORS[kind]) as caught:
        train(state, config, data, [Signal(kind, event)])
    expected_step = {"batch": 2, "validation": steps, "epoch": steps + 1}[event]
    assert latest(tmp_path / "run" / "checkpoints") == expected_step == int(caught.value.state.step)
    assert f"training interrupted by {kind.name} after step {expected_step}" in caplog.text
    assert caught.value.code == 143 if kind == signal.SIGTERM else isinstance(caught.value, KeyboardInterrupt)
    assert len(caught.value.history["lr"]) == (1 if event == "epoch" else 0)
    done, history = train(state, config, data, resume="auto")
    whole, expected = train(state, replace(config, name=""), data)
    assert equal(done, whole)
    for name in ("train_loss", "val_loss", "train_metrics", "val_metrics", "lr"):
        assert history[name] == expected[name]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("event", ["batch", "validation"])
def test_without_a_folder_the_state_comes_with_the_error_and_the_trainer_goes_on(config, data, event):
    model = create_model_from_config(config)
    trainer = Trainer(model, config, data.train, data.val, callbacks=[Signal(signal.SIGINT, event)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert int(trainer.state.step) == (2 if event == "batch" else data.train.steps_per_epoch)
    trainer.callbacks = []
    trainer.train()
    _, expected = train(create_state(create_model_from_config(config), config), config, data)
    for name in ("train_loss", "val_loss", "train_metrics", "lr"):
        assert trainer.history[name] == expected[name]


def test_a_signal_after_the_last_step_ends_what_follows_too(state, config, data):
    with pytest.raises(TrainingTerminated) as caught:
        train(state, config, data, [Signal(signal.SIGTERM, "epoch", epoch=config.epochs - 1)])
    assert len(caught.value.history["lr"]) == config.epochs


def test_a_worker_that_was_forked_ends_as_ever():
    process = run_python("""
        import multiprocessing, time
        from forestgaps_jax.interruption import Interruption
        with Interruption():
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
            worker.start()
            time.sleep(0.5)
            worker.terminate()
            worker.join(10)
            print(worker.exitcode, flush=True)
    """)
    out, _ = process.communicate(timeout=60)
    assert out.strip() == str(-signal.SIGTERM)


def test_who_ignores_a_signal_goes_on_to(state, config, data):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, history = train(state, config, data, [Signal(signal.SIGINT, "batch")])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(history["lr"]) == config.epochs


def test_handlers_are_given_back(state, config, data):
    before = [signal.getsignal(kind) for kind in ERRORS]
    train(state, replace(config, epochs=1), data)
    with pytest.raises(TrainingTerminated):
        train(state, config, data, [Signal(signal.SIGTERM, "batch")])
    assert [signal.getsignal(kind) for kind in ERRORS] == before


def test_in_another_thread_signals_stay_as_they_are(state, config, data):
    results = []
    thread = threading.Thread(target=lambda: results.append(train(state, config, data)))
    thread.start()
    thread.join()
    assert len(results[0][1]["lr"]) == config.epochs


def test_after_the_first_signal_a_second_one_is_not_held_back():
    with Interruption() as interruption:
        assert not interruption.reached()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.reached()
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL


def run_python(code: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )


def test_a_second_signal_ends_the_process_at_once():
    process = run_python("""
        import time
        from forestgaps_jax.interruption import Interruption
        with Interruption() as interruption:
            print("ready")
            while not interruption.reached():
                time.sleep(0.01)
            print("noted")
            time.sleep(60)
    """)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "noted\n"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    assert time.monotonic() - start < 5


def test_the_notice_of_a_preemption_that_jax_has_is_honoured():
    """With jax.distributed SIGTERM is the notice, and all processes agree on the step."""
    process = run_python("""
        import os, signal, socket, time
        import jax
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        jax.distributed.initialize(f"localhost:{port}", 1, 0)
        from forestgaps_jax.interruption import Interruption
        with Interruption() as interruption:
            assert not any(interruption.reached(step) for step in range(10))
            os.kill(os.getpid(), signal.SIGTERM)
            for step in range(10, 2000):
                if interruption.reached(step):
                    break
                time.sleep(0.01)
            print(interruption.signal.name, step >= 10)
        jax.distributed.shutdown()
    """)
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "SIGTERM True"


def test_the_command_is_ended_in_its_test_too(tmp_path):
    runner = Runner(tmp_path, SETTINGS.replace("epochs = 3", "epochs = 1"))
    assert runner.finish() == 0, runner.output
    process = runner.start()
    for line in process.stdout:
        if "going on with" in line:
            break
    time.sleep(0.5)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (0, 143)
    assert time.monotonic() - start < 10
    assert "Traceback" not in output
    restore(runner.run_folder / "checkpoints", runner.like())
