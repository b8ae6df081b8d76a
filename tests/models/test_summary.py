"""The summary's numbers against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from forestgaps_jax.models import create_model, model_summary, parameter_count
from tests.models.networks import abstract, every, stride_of


def rows(text):
    """Name and value of each line after the title."""
    return {line[2:].split("  ")[0]: line[2:].split("  ", 1)[1].strip() for line in text.splitlines()[1:]}


@every
def test_the_parts_make_the_total(name):
    network = abstract(name)
    told = rows(model_summary(network, (2, 16, 16, 1)))
    parts = [int(value.replace(",", "")) for value in told.values() if value.replace(",", "").isdigit()]
    assert len(parts) >= 5
    total = parameter_count(network)
    assert sum(parts) == total
    assert told["total"] == f"{total:,} parameters, {4 * total / 1e6:.2f} MB"
    assert told["output"] == "2 x 16 x 16 x 1 float32"
    assert told["stride"].startswith(f"{stride_of(name)} px")


def test_parameters_of_a_unet_are_those_of_its_layers():
    """Counted by hand: kernels, scale and bias of each norm, biases of 1x1 convolutions."""
    encoder = (9 * 3 * 2 + 4) + (9 * 2 * 2 + 4)  # the surface, and above two openings
    bottom = (9 * 2 * 4 + 8) + (9 * 4 * 4 + 8)
    narrow, decoder, head = 4 * 2 + 2, (9 * 4 * 2 + 4) + (9 * 2 * 2 + 4), 2 + 1
    network = create_model("unet", rngs=nnx.Rngs(0), features=2, depth=1, opening_windows=(3, 5))
    assert parameter_count(network) == encoder + bottom + narrow + decoder + head
    told = rows(model_summary(network, (1, 8, 8, 1)))
    assert [told[part] for part in ("encoder", "bottom", "narrow", "decoder", "head")] == [
        str(n) for n in (encoder, bottom, narrow, decoder, head)
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "batch"}, "BatchNorm, statistics of the whole batch"),
        ({"norm": "group", "batch_size": 32}, "GroupNorm"),
        ({"norm": "adaptive", "batch_size": 8}, "GroupNorm (adaptive: batch_size = 8 is below 16)"),
        (
            {"norm": "adaptive", "batch_size": 16},
            "BatchNorm, statistics of the whole batch (adaptive: batch_size = 16 is not below 16)",
        ),
    ],
)
def test_normalisation_is_told_in_words(options, words):
    assert rows(model_summary(abstract("unet", **options), (1, 8, 8, 1)))["normalisation"] == words


def test_settings_are_told():
    options = {"dropout": 0.1, "drop_path_rate": 0.2, "precision": "bfloat16", "remat": True}
    told = rows(model_summary(abstract("unet_film", spectral_norm=True, **options), (1, 8, 8, 1)))
    assert told["dropout"] == "0.1"
    assert told["stochastic depth"] == "0.2 in the deepest block"
    assert told["precision"] == "bfloat16"
    assert told["spectral norm"] == "of every convolution"
    assert told["backward pass"] == "computes features again"


class Foreign(nnx.Module):
    """A module of someone else: its ``norm`` and ``stride`` mean other things."""

    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(1, rngs=rngs)
        self.stride = "none"
        self.mix = nnx.Linear(1, 500, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.mix(x)


def test_a_foreign_module_is_summed_up_too():
    text = model_summary(Foreign(nnx.Rngs(0)), (2, 40, 50, 1))
    assert text.splitlines()[0] == "Foreign"
    told = rows(text)
    assert (told["mix"], told["norm"]) == ("500", "2")
    assert told["output"] == "2 x 40 x 50 x 500 float32"
    flops = 2 * 2 * 40 * 50 * 500
    assert told["forward pass"] == f"{flops / 1e9:.3g} GFLOPs"
    assert not {"stride", "normalisation", "precision"} & set(told)


def test_a_module_without_parameters_is_summed_up_too():
    class Nothing(nnx.Module):
        def __call__(self, dsm, threshold):
            return dsm - threshold[:, None, None, None]

    told = rows(model_summary(Nothing()))
    assert told["total"] == "0 parameters, 0.00 MB"
    assert told["output"] == "1 x 128 x 128 x 1 float32"


def test_a_shape_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="10 x 8 px: both must be multiples of 4"):
        model_summary(abstract("unet"), (1, 10, 8, 1))


def test_the_cost_of_a_network_is_about_that_of_its_convolutions():
    network = create_model("unet", rngs=nnx.Rngs(0), features=32, depth=1)
    told = rows(model_summary(network, (1, 64, 64, 1)))["forward pass"]
    flops = 0.0
    for size, kernels in ((64, [network.encoder[0], network.decoder[0]]), (32, [network.bottom])):
        for block in kernels:
            for conv in (block.conv1, block.conv2):
                flops += 2 * size**2 * np.prod(jnp.shape(conv.kernel[...]))
    assert float(told.split()[0]) == pytest.approx(flops / 1e9, rel=0.1)
