import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from forestgaps_jax.models.film import FiLM, ThresholdEmbedding


def test_fault_14_film_starts_as_the_identity_and_then_is_one_plus_gamma_and_beta():
    film = FiLM(5, [3, 2], rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(2, 5)).astype(np.float32)
    for gain, shift in film(jnp.asarray(embedding)):
        np.testing.assert_array_equal(gain, 1.0)
        np.testing.assert_array_equal(shift, 0.0)
    kernel = rng.normal(size=(5, 10)).astype(np.float32)
    film.project.kernel[...] = jnp.asarray(kernel)
    gamma, beta = (embedding @ part for part in np.split(kernel, 2, axis=1))
    for (gain, shift), layer in zip(film(jnp.asarray(embedding)), (np.s_[:, :3], np.s_[:, 3:]), strict=True):
        assert gain.shape == (2, 1, 1, gamma[layer].shape[1])
        np.testing.assert_allclose(gain[:, 0, 0], 1 + gamma[layer], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shift[:, 0, 0], beta[layer], rtol=1e-5, atol=1e-6)


def test_embedding_tells_thresholds_and_pixels_apart_sample_by_sample():
    embed = ThresholdEmbedding(8, rngs=nnx.Rngs(0))
    threshold, resolution = jnp.asarray([0.5, 2.0, 2.0]), jnp.asarray([1.0, 1.0, 0.5])
    found = np.asarray(embed(threshold, resolution))
    assert found.shape == (3, 8)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(found[one] - found[other]).max() > 1e-2
    for sample in range(3):
        alone = embed(threshold[sample, None], resolution[sample, None])
        np.testing.assert_allclose(alone[0], found[sample], rtol=1e-5)


def test_pixels_are_embedded_by_their_octaves():
    """Kernel and bias by hand: halving a pixel is as far as doubling it, and 1 m is 0."""
    embed = ThresholdEmbedding(2, rngs=nnx.Rngs(0))
    embed.hidden.kernel[...] = jnp.asarray([[0.0, 0.0], [1.0, -1.0]])
    embed.out.kernel[...] = jnp.eye(2)
    quarter, half, one, two = np.asarray(embed(jnp.ones(4), jnp.asarray([0.25, 0.5, 1.0, 2.0])))
    np.testing.assert_array_equal(one, 0.0)
    np.testing.assert_allclose(half, two[::-1], rtol=1e-6)
    np.testing.assert_allclose(quarter, jax.nn.gelu(jax.nn.gelu(jnp.asarray([-2.0, 2.0]))), rtol=1e-5)
