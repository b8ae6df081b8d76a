import sys
from dataclasses import replace

import pytest

from forestgaps_jax.callbacks import LambdaCallback, ProgressBar
from tests.callbacks.driving import drive, new_run, scores


@pytest.fixture(params=["tqdm", "no tqdm"])
def tqdm(request, monkeypatch):
    if request.param == "no tqdm":
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)


@pytest.mark.usefixtures("tqdm")
def test_each_epoch_prints_a_line(state, config, capsys):
    drive(new_run(state, config), [ProgressBar()], [scores(), {}])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "epoch 1/2  loss 0.4000  iou 0.600  val_loss 0.5000  val_iou 0.600  lr 0.1  2.0 s"
    )
    assert first.endswith("* best so far")
    assert second == "epoch 2/2  loss 0.4000  iou 0.600  lr 0.05  3.0 s"


@pytest.mark.usefixtures("tqdm")
def test_the_reason_of_a_stop_is_told(state, config, capsys):
    run = new_run(state, replace(config, epochs=9))
    stop = LambdaCallback(on_epoch_end=lambda *_: run.stop("good enough"))
    drive(run, [ProgressBar(), stop], [scores()])
    assert capsys.readouterr().out.splitlines()[-1] == "stopped: good enough"


def test_a_regression_shows_its_error(state, config, capsys):
    drive(new_run(state, config), [ProgressBar()], [scores(regression={"rmse": 2.5})])
    assert "val_iou 0.600  val_rmse 2.500" in capsys.readouterr().out


def test_the_bar_counts_the_steps_and_shows_the_loss(state, config, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    drive(new_run(state, config), [ProgressBar()], [scores(), scores()])
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "epoch 2/2" in shown
    assert "loss=0.5000" in shown
