import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from compass_ray.sampling.distribution import (
    counted,
    histogram,
    js_divergence,
    kl_divergence,
    prototypes,
    smooth,
)

WEIGHTS = st.floats(0, 1e300) | st.sampled_from([0.0, 5e-324, 1.0])
VECTORS = arrays(np.float64, 5, elements=WEIGHTS).filter(np.any)


def test_a_histogram_counts_every_cluster_including_the_empty_ones():
    assert histogram([0, 2, 2], 4).tolist() == [1, 0, 2, 0]
    assert histogram([], 3).tolist() == [0, 0, 0]
    assert histogram(np.array([1, 1], dtype=np.uint64), 2).dtype == np.float64


def test_a_weighted_histogram_adds_weights():
    assert histogram([0, 2, 2], 3, [0.5, 1.0, 2.0]).tolist() == [0.5, 0, 3.0]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_counted_rows_do_not_depend_on_the_unit_of_their_weights(scale):
    weights = np.array([1.0, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(counted([0, 2, 2, 0], 3, scale * weights), [2.5, 0, 1.5])
    assert counted([0, 2, 2], 3, np.full(3, scale)).tolist() == [1, 0, 2]


def test_rows_without_any_weight_count_nothing():
    assert counted([0, 1], 2, [0.0, 0.0]).tolist() == [0, 0]
    assert counted([], 2, []).tolist() == [0, 0]


def test_prototypes_are_weighted_means_at_length_1_and_zeros_where_nobody_asks():
    vectors = np.array([[1, 0], [0, 1], [0, 1], [0.6, 0.8]], np.float32)
    found = prototypes(vectors, np.array([0, 0, 2, 2]), np.array([3.0, 4.0, 1.0, 0.0]), 3)
    np.testing.assert_allclose(found, [[0.6, 0.8], [0, 0], [0, 1]], rtol=1e-6)
    assert found.dtype == np.float32
    assert not prototypes(vectors[:0], np.empty(0, np.int32), np.empty(0), 2).any()


@pytest.mark.parametrize(
    ("labels", "k", "weights", "message"),
    [
        ([0, 3], 3, None, "3 is outside 0 to 2"),
        ([-1], 3, None, "-1 is outside"),
        ([0.0, 1.0], 3, None, "integers"),
        ([[0], [1]], 3, None, "one dimension"),
        ([0], 0, None, "at least one cluster"),
        ([0, 1], 2, [1.0], "1 given for 2"),
        ([0], 2, [-1.0], "at least 0"),
        ([0], 2, [np.nan], "finite"),
    ],
)
def test_a_histogram_refuses_what_it_cannot_count(labels, k, weights, message):
    with pytest.raises(ValueError, match=message):
        histogram(labels, k, weights)


def test_smoothing_follows_its_formula_and_is_uniform_without_counts():
    np.testing.assert_allclose(smooth([3, 1, 0], 0.5), [3.5 / 5.5, 1.5 / 5.5, 0.5 / 5.5])
    np.testing.assert_allclose(smooth([0, 0, 0, 0], 0.5), 0.25)
    np.testing.assert_allclose(smooth([3, 1], 0), [0.75, 0.25])


@pytest.mark.parametrize(
    ("counts", "alpha"), [([0, 0], 0), ([1, -1], 1), ([1], -0.5), ([1], np.inf), ([np.inf], 1)]
)
def test_smoothing_refuses_what_gives_no_distribution(counts, alpha):
    with pytest.raises(ValueError, match=r"needed|no distribution"):
        smooth(counts, alpha)


@given(VECTORS, VECTORS)
@settings(max_examples=100, deadline=None)
def test_js_divergence_is_symmetric_and_between_0_and_1(p, q):
    assert 0 <= js_divergence(p, q) <= 1
    assert js_divergence(p, q) == js_divergence(q, p)
    assert js_divergence(p, p) == 0


def test_js_divergence_is_1_for_disjoint_distributions_and_ignores_scale():
    assert js_divergence([1, 0], [0, 5]) == 1
    assert js_divergence([1, 3], [10, 30]) == pytest.approx(0, abs=1e-15)


def test_divergences_agree_with_scipy_on_random_distributions():
    rng = np.random.default_rng(0)
    for p, q in rng.dirichlet(np.full(20, 0.3), size=(100, 2)):
        # scipy returns the root of the divergence.
        assert js_divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-12)
        assert kl_divergence(p, q) == pytest.approx(entropy(p, q, base=2), rel=1e-12)


def test_kl_divergence_is_in_bits_and_infinite_where_nothing_covers_p():
    assert kl_divergence([1, 0], [1, 1]) == pytest.approx(1)
    assert kl_divergence([1, 1], [1, 0]) == np.inf
    assert kl_divergence([1, 0], [1, 0]) == 0


@pytest.mark.parametrize("divergence", [js_divergence, kl_divergence])
@pytest.mark.parametrize(
    ("p", "q"), [([0, 0], [1, 1]), ([1, 1], [0, 0]), ([1], [1, 1]), ([-1, 2], [1, 1]), ([], [])]
)
def test_divergences_refuse_what_is_no_distribution(divergence, p, q):
    with pytest.raises(ValueError, match=r"^(p|q|p and q): "):
        divergence(p, q)
