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


def test_embedding_tells_thresholds_apart_sample_by_sample():
    embed = ThresholdEmbedding(8, rngs=nnx.Rngs(0))
    both = np.asarray(embed(jnp.asarray([0.5, 2.0])))
    assert both.shape == (2, 8)
    assert np.abs(both[0] - both[1]).max() > 1e-2
    np.testing.assert_allclose(embed(jnp.asarray([2.0]))[0], both[1], rtol=1e-5)
