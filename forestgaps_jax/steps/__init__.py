"""Train on a batch, evaluate a batch, predict: pure functions, and compiled."""

from forestgaps_jax.steps.compiled import Bound, as_arrays, make_eval_step, make_train_step, predict_step
from forestgaps_jax.steps.forward import predicts_heights
from forestgaps_jax.steps.scoring import EvalLogs, EvalStep, numbered_eval_step, scoring_numbers
from forestgaps_jax.steps.training import StepLogs, TrainStep, gradients, numbered_train_step, train_step

__all__ = [
    "Bound",
    "EvalLogs",
    "EvalStep",
    "StepLogs",
    "TrainStep",
    "as_arrays",
    "gradients",
    "make_eval_step",
    "make_train_step",
    "numbered_eval_step",
    "numbered_train_step",
    "predict_step",
    "predicts_heights",
    "scoring_numbers",
    "train_step",
]
