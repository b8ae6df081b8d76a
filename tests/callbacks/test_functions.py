import pytest

from forestgaps_jax.callbacks import EVENTS, CallbackList, LambdaCallback
from tests.callbacks.driving import drive, new_run, scores


def test_every_event_can_be_a_function(state, config):
    fired = []
    functions = {event: lambda *given, event=event: fired.append((event, given)) for event in EVENTS}
    hooks = CallbackList([LambdaCallback(**functions)], new_run(state, config))
    for event in EVENTS:
        position = [3] if "batch" in event or "epoch" in event else []
        hooks.fire(event, *position, a=1)
        assert fired[-1] == (event, (*position, {"a": 1}))


def test_it_is_called_in_its_place(state, config):
    seen = []
    callback = LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((epoch, logs["val_metrics"]["loss"])),
        on_train_end=lambda logs=None: seen.append("end"),
    )
    drive(new_run(state, config), [callback], [scores(loss=0.5), scores(loss=0.25)])
    assert seen == [(0, 0.5), (1, 0.25), "end"]


def test_fault_03_a_misspelt_event_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match=r"on_epoch_ends=\.\.\.\) is no event; did you mean 'on_epoch_end'"):
        LambdaCallback(on_epoch_ends=print)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda logs: None, r"on_epoch_end=\.\.\.\) must take \('epoch', 'logs'\)"),
        (lambda self, epoch, logs: None, r"must take \('epoch', 'logs'\)"),
        (3, "is 3: must be a function"),
    ],
)
def test_fault_03_what_could_not_be_called_is_refused(function, message):
    with pytest.raises(TypeError, match=message):
        LambdaCallback(on_epoch_end=function)
