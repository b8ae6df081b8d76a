import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forestgaps_jax.loss import (
    AdaptiveLoss,
    BCELoss,
    CombinedFocalDiceLoss,
    DiceLoss,
    FocalLoss,
    MSELoss,
    ThresholdWeightedLoss,
)
from tests.loss.oracles import SHAPE, case, dice, finite_differences, focal, masked_case, run

THREE = AdaptiveLoss((FocalLoss(), DiceLoss(), BCELoss()), initial_weights=(4.0, 1.0, 0.25))


def parts_of(logits, targets, **masks):
    return np.array(
        [
            focal(logits, targets, **masks),
            dice(logits, targets, **masks),
            focal(logits, targets, None, 0.0, **masks),
        ]
    )


def value_and_slopes(loss, params, logits, targets, **masks):
    return jax.value_and_grad(lambda p: loss(logits, targets, params=p, **masks))(params)


def test_fault_07_value_and_gradient_of_the_weights_are_the_closed_form():
    logits, targets, valid, weight = masked_case(0)
    parts = parts_of(logits, targets, valid=valid, weight=weight)
    s = np.array([0.7, -1.2, 2.0])
    params = {"log_variance": jnp.asarray(s, jnp.float32)}
    arrays = {"valid": jnp.asarray(valid), "sample_weight": jnp.asarray(weight)}
    value, slopes = value_and_slopes(THREE, params, jnp.asarray(logits), jnp.asarray(targets), **arrays)
    assert float(value) == pytest.approx((np.exp(-s) * parts + s).sum(), rel=1e-5)
    np.testing.assert_allclose(slopes["log_variance"], 1 - np.exp(-s) * parts, rtol=1e-4, atol=1e-6)


def test_gradient_of_the_logits_is_the_slope_of_the_formula():
    logits, targets, valid, weight = masked_case(1)
    _, slope = run(THREE, logits, targets, valid, weight)
    factors = np.array([4.0, 1.0, 0.25])

    def expected(x):
        return (factors * parts_of(x, targets, valid=valid, weight=weight)).sum()

    np.testing.assert_allclose(slope, finite_differences(expected, logits), rtol=1e-3, atol=1e-6)


def test_fault_07_the_best_weights_make_all_parts_count_alike_and_none_takes_over():
    logits, targets = case(2, spread=1.0)
    parts = parts_of(logits, targets)
    assert parts.max() > 4 * parts.min()  # a learnt mixture would go to the smallest
    params, optimizer = THREE.init(), optax.adam(0.05)

    @jax.jit
    def descend(carry, _):
        params, opt_state = carry
        _, slopes = value_and_slopes(THREE, params, jnp.asarray(logits), jnp.asarray(targets))
        updates, opt_state = optimizer.update(slopes, opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    (params, _), _ = jax.lax.scan(descend, (params, optimizer.init(params)), length=600)
    np.testing.assert_allclose(params["log_variance"], np.log(parts), atol=1e-2)
    np.testing.assert_allclose(THREE.weights(params) * parts, 1.0, rtol=1e-2)


@pytest.mark.parametrize(("perfect", "edge"), [(True, -1), (False, 1)])
def test_fault_07_a_part_of_zero_or_huge_does_not_run_away(perfect, edge):
    loss = AdaptiveLoss((BCELoss(),), max_weight=10.0)
    targets = case(3)[1]
    logits = jnp.asarray((2 * targets - 1) * (1e4 if perfect else -1e4))
    params = loss.init()
    slope = jax.jit(lambda p: value_and_slopes(loss, p, logits, jnp.asarray(targets))[1])
    for _ in range(400):
        step = jax.tree.map(lambda g: jnp.clip(g, -1, 1), slope(params))
        params = jax.tree.map(lambda s, g: s - 0.05 * g, params, step)
    limit = np.log(10.0)
    assert float(params["log_variance"][0]) == pytest.approx(edge * limit, abs=0.11)
    assert float(loss.weights(params)[0]) == pytest.approx(10.0**-edge, rel=0.12)
    # Far outside nothing is stuck: the gradient leads back whatever the part is.
    outside = {"log_variance": jnp.full(1, 3 * edge * limit)}
    np.testing.assert_array_equal(slope(outside)["log_variance"], [edge])
    assert float(loss.weights(outside)[0]) == pytest.approx(10.0**-edge, rel=1e-5)


def test_init_takes_logarithms_of_the_initial_weights():
    params = THREE.init()
    assert set(params) == {"log_variance"}
    assert params["log_variance"].dtype == jnp.float32
    np.testing.assert_allclose(params["log_variance"], -np.log([4.0, 1.0, 0.25]), rtol=1e-6)
    np.testing.assert_allclose(THREE.weights(params), [4.0, 1.0, 0.25], rtol=1e-6)
    np.testing.assert_array_equal(AdaptiveLoss().init()["log_variance"], np.zeros(2))


def test_without_params_it_is_the_loss_of_the_first_ones():
    logits, targets = map(jnp.asarray, case(4))
    assert THREE(logits, targets) == THREE(logits, targets, params=THREE.init())
    parts = parts_of(logits, targets)
    expected = (parts * [4, 1, 0.25] - np.log([4, 1, 0.25])).sum()
    assert float(THREE(logits, targets)) == pytest.approx(expected, rel=1e-5)


def test_no_valid_pixel_teaches_the_weights_nothing():
    nothing = jnp.full(SHAPE, jnp.nan)
    value, slopes = value_and_slopes(THREE, THREE.init(), nothing, nothing, valid=jnp.zeros(SHAPE, bool))
    assert value == 0
    np.testing.assert_array_equal(slopes["log_variance"], 0)


def test_it_says_that_it_learns_and_the_others_do_not():
    assert AdaptiveLoss.learns
    assert not any(kind.learns for kind in (FocalLoss, DiceLoss, BCELoss, CombinedFocalDiceLoss, MSELoss))


def test_a_list_of_parts_serves_and_stays_hashable():
    loss = AdaptiveLoss([FocalLoss(), DiceLoss()], initial_weights=[2, 1])
    assert loss == AdaptiveLoss((FocalLoss(), DiceLoss()), (2.0, 1.0))
    assert hash(loss) == hash(AdaptiveLoss((FocalLoss(), DiceLoss()), (2.0, 1.0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses": ()}, "losses is empty"),
        ({"losses": (FocalLoss(from_logits=False),)}, "from_logits=False on AdaptiveLoss"),
        ({"losses": (MSELoss(),)}, "must be a gap loss"),
        ({"losses": (AdaptiveLoss(),)}, "must be a plain gap loss"),
        ({"losses": (ThresholdWeightedLoss(BCELoss(), (5.0,), (1.0,)),)}, "around AdaptiveLoss"),
        ({"initial_weights": (1.0,)}, "1 initial_weights for 2 losses"),
        ({"initial_weights": (1.0, 0.0)}, "must be from 0.001 to 1000"),
        ({"initial_weights": (1.0, -2.0)}, "must be from 0.001 to 1000"),
        ({"initial_weights": (1.0, float("nan"))}, "must be from 0.001 to 1000"),
        ({"max_weight": 1.0}, "must be above 1"),
    ],
)
def test_what_cannot_work_is_refused_when_the_loss_is_made(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveLoss(**settings)


def test_params_of_another_loss_are_refused():
    logits, targets = map(jnp.asarray, case(5))
    with pytest.raises(ValueError, match=r"log_variance has shape \(2,\): must be \(3,\)"):
        THREE(logits, targets, params=AdaptiveLoss().init())
