import jax
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.config import Config
from forestgaps_jax.layers import Norm
from forestgaps_jax.models import MODELS, create_model, create_model_from_config
from tests.models.networks import SMALL, every, stride_of


def test_all_networks_of_the_original_are_there():
    names = {"unet", "unet_film", "unet_residual", "unet_attention", "unet_all_features", "unet_regression"}
    assert set(MODELS) >= names | {"deeplabv3_plus", "deeplabv3_plus_film"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unet_flim", "no model 'unet_flim'; did you mean 'unet_film'. there are: .*, unet, .*unet_film"),
        ("film_unet", "did you mean 'unet_film'"),
        ("DeepLabV3+", "did you mean 'deeplabv3_plus'"),
        ("deeplab_v3_plus_threshold", "did you mean 'deeplabv3_plus_film'"),
        ("transformer", "no model 'transformer'; there are: .*, unet, .*unet_film"),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_the_names(name, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("option", "value", "least"), [("features", 0, 1), ("depth", -1, 0)])
def test_a_size_that_no_network_has_is_an_error(option, value, least):
    with pytest.raises(ValueError, match=f"{option} = {value}: must be {least} or more"):
        create_model("unet", rngs=nnx.Rngs(0), **{option: value})


def test_an_unknown_option_is_a_type_error():
    with pytest.raises(TypeError, match="feature"):
        create_model("unet", rngs=nnx.Rngs(0), feature=4)


def kinds_of_norms(network):
    return {module.kind for _, module in nnx.iter_modules(network) if isinstance(module, Norm)}


def shapes(build):
    return jax.tree.map(lambda leaf: leaf.shape, jax.tree.leaves(nnx.state(nnx.eval_shape(build))))


@every
@pytest.mark.parametrize(
    "chosen", [{"features": 6, "depth": 1, "norm": "group"}, {"features": 3, "depth": 3}]
)
def test_the_model_of_a_config_has_its_features_and_depth(name, chosen):
    config = Config(model_name=name, **chosen)
    expected = shapes(lambda: create_model(name, rngs=nnx.Rngs(0), **chosen))
    assert shapes(lambda: create_model_from_config(config)) == expected


@every
def test_the_model_of_a_config_has_its_settings(name):
    chosen = {"dropout": 0.25, "height_scale": 7.0, "precision": "bfloat16", "remat": True}
    chosen |= {"spectral_norm": True, "norm": "adaptive", "batch_size": 4, "droppath_final_prob": 0.5}
    chosen |= {"detrend": False, "opening_windows": (3, 7)}
    config = Config(model_name=name, features=4, depth=2, use_droppath=True, **chosen)
    network = nnx.eval_shape(lambda: create_model_from_config(config))
    names = ("height_scale", "precision", "remat", "spectral_norm", "detrend", "opening_windows")
    kept = {key: getattr(network, key) for key in names}
    assert kept == {key: chosen[key] for key in kept}
    assert (network.dropout.rate, network.drop_path_rate, network.stride) == (0.25, 0.5, stride_of(name, 2))
    assert network.head.direction is not None
    assert kinds_of_norms(network) == {"group"}
    config.batch_size, config.use_droppath = 16, False
    network = nnx.eval_shape(lambda: create_model_from_config(config))
    assert kinds_of_norms(network) == {"batch"}
    assert network.drop_path_rate == 0.0


@every
def test_tiles_of_a_config_must_fit_the_network(name):
    stride = stride_of(name, 2)
    config = Config(model_name=name, features=2, depth=2, tile_size=3 * stride)
    nnx.eval_shape(lambda: create_model_from_config(config))
    config.tile_size += stride // 2
    message = f"tile_size = {7 * stride // 2} .*'{name}' with depth = 2: must be a multiple of {stride}"
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: create_model_from_config(config))


@pytest.mark.parametrize(("name", "depth"), [("unet", 1), ("unet_residual", 3), ("deeplabv3_plus", 3)])
def test_block_i_of_n_has_its_share_of_stochastic_depth(name, depth):
    network = nnx.eval_shape(lambda: create_model(name, rngs=nnx.Rngs(0), features=2, depth=depth))
    blocks = network.stages if name.startswith("deeplab") else [*network.encoder, network.bottom]
    shares = [block.drop_path.share for block in blocks]
    assert shares == pytest.approx([(i + 1) / len(shares) for i in range(len(shares))])


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "combined_regression"])
def test_losses_on_heights_need_the_network_that_predicts_them(loss):
    for name in set(MODELS) - {"unet_regression"}:
        with pytest.raises(ValueError, match=f"loss_type = '{loss}'.*choose model_name = 'unet_regression'"):
            create_model_from_config(Config(model_name=name, loss_type=loss))
    config = Config(model_name="unet_regression", loss_type=loss)
    assert nnx.eval_shape(lambda: create_model_from_config(config)).height_scale == config.height_scale


def test_the_seed_of_a_config_gives_the_weights():
    found, expected, other = (
        jax.tree.leaves(nnx.state(network))
        for network in (
            create_model_from_config(Config(model_name="unet", seed=3, **SMALL)),
            create_model("unet", rngs=nnx.Rngs(3), **SMALL),
            create_model("unet", rngs=nnx.Rngs(4), **SMALL),
        )
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(found, other, strict=True))
