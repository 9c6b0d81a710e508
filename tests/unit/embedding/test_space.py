import io

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import normalized_mutual_info_score

from compass_ray.embedding.local import load_space
from compass_ray.embedding.space import (
    NeutralSpace,
    RawSpace,
    add_sums,
    language_sums,
)


def unit(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


def multilingual(rows=600, seed=0, spread=0.3):
    """Unit vectors whose language moves them more than their topic: (X, languages, topics)."""
    rng = np.random.default_rng(seed)
    languages = rng.choice(["de", "sw", "vi", "tr"], rows)
    topics = rng.integers(0, 5, rows)
    place = dict(zip(["de", "sw", "vi", "tr"], rng.normal(size=(4, 32)), strict=True))
    meaning = rng.normal(size=(5, 32)) * 0.5
    noise = rng.normal(size=(rows, 32)) * spread
    X = np.array([place[name] for name in languages]) + meaning[topics] + noise
    return unit(X).astype(np.float32), languages, topics


SPACES = [
    lambda X, languages: NeutralSpace().fit(X, languages),
    lambda X, languages: NeutralSpace(components=2).fit(X, languages),
    lambda X, languages: RawSpace(),
]


@pytest.mark.parametrize("make", SPACES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_space_gives_unit_float32_rows(make, dtype):
    X, languages, _ = multilingual()
    out = make(X, languages).transform(X.astype(dtype), languages)
    assert out.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("make", SPACES)
def test_every_space_survives_a_round_trip_bit_by_bit(make, tmp_path):
    X, languages, _ = multilingual()
    space = make(X, languages)
    space.save(tmp_path / "space.npz")
    buffer = io.BytesIO()
    space.save(buffer)
    for file in (tmp_path / "space.npz", io.BytesIO(buffer.getvalue())):
        loaded = load_space(file)
        assert type(loaded) is type(space)
        assert {k: np.asarray(v).tobytes() for k, v in vars(loaded).items()} == {
            k: np.asarray(v).tobytes() for k, v in vars(space).items()
        }
        np.testing.assert_array_equal(loaded.transform(X, languages), space.transform(X, languages))


@pytest.mark.parametrize("make", SPACES)
def test_every_space_transforms_no_rows_and_many_rows_alike(make):
    X, languages, _ = multilingual(rows=20_000)
    space = make(X, languages)
    assert space.transform(X[:0], []).shape == (0, 32)
    np.testing.assert_allclose(
        space.transform(X, languages)[-5:], space.transform(X[-5:], languages[-5:]), atol=1e-7
    )


@pytest.mark.parametrize("make", SPACES)
@pytest.mark.parametrize(
    ("X", "languages", "message"),
    [
        (np.ones((2, 32)), ["de"], "one name for each of 2 rows"),
        (np.ones((2, 32)), "de", "one name for each of 2 rows"),
        (np.ones((2, 32)), ["de", None], "string"),
        (np.ones((2, 32)), [1, 2], "string"),
        (np.ones(32), ["de"], "rows of vectors"),
        (np.ones((2, 32), dtype=int), ["de", "de"], "floating"),
        (np.full((2, 32), np.nan), ["de", "de"], "not finite"),
    ],
)
def test_every_space_refuses_wrong_input(make, X, languages, message):
    space = make(*multilingual()[:2])
    with pytest.raises(ValueError, match=message):
        space.transform(X, languages)


def test_languages_may_come_as_list_or_array_of_any_string_kind():
    X, languages, _ = multilingual()
    expected = NeutralSpace().fit(X, languages).transform(X, languages)
    for same in (languages.tolist(), tuple(languages.tolist()), languages.astype(object)):
        np.testing.assert_array_equal(NeutralSpace().fit(X, same).transform(X, same), expected)


def test_without_shrinkage_each_language_is_centred_on_its_own_mean():
    X, languages, _ = multilingual()
    space = NeutralSpace(shrinkage=0).fit(X, languages)
    assert space.languages == ("de", "sw", "tr", "vi")
    for name, centre in zip(space.languages, space.centres, strict=True):
        own = X[languages == name].astype(np.float64)
        np.testing.assert_allclose(centre, own.mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(
            space.transform(own, [name] * len(own)), unit(own - own.mean(axis=0)), atol=1e-6
        )


def test_a_mean_of_few_rows_is_drawn_to_the_global_mean_by_its_formula():
    X, languages, _ = multilingual()
    rows = np.r_[np.flatnonzero(languages != "sw"), np.flatnonzero(languages == "sw")[:5]]
    X, languages = X[rows].astype(np.float64), languages[rows]
    space = NeutralSpace(shrinkage=50).fit(X, languages)
    mean = X[languages == "sw"].mean(axis=0)
    expected = (5 * mean + 50 * space.global_mean) / 55
    np.testing.assert_allclose(space.centres[space.languages.index("sw")], expected, atol=1e-12)


def test_a_huge_language_does_not_own_the_global_mean_and_a_tiny_one_hardly_moves_it():
    east, west, north = np.eye(3)
    sums = {"huge": (east * 1e6, 10**6), "large": (west * 1e4, 10**4), "tiny": (north, 1)}
    mean = NeutralSpace.from_sums(sums).global_mean
    np.testing.assert_allclose(mean, [0.5, 0.5, 0.005], atol=0.005)


def test_sums_of_parts_give_the_space_of_the_whole():
    X, languages, _ = multilingual()
    whole = NeutralSpace(30.0, 1).fit(X, languages)
    parts = [language_sums(X[i::7], languages[i::7]) for i in range(7)]
    streamed = NeutralSpace.from_sums(add_sums(parts), 30.0, 1)
    assert streamed.languages == whole.languages
    np.testing.assert_array_equal(streamed.counts, whole.counts)
    np.testing.assert_allclose(streamed.centres, whole.centres, rtol=0, atol=1e-14)
    np.testing.assert_allclose(
        streamed.transform(X, languages), whole.transform(X, languages), atol=1e-6
    )


def test_adding_sums_leaves_the_parts_as_they_were():
    part = {"de": (np.ones(2), 1)}
    assert add_sums([part, part])["de"][1] == 2
    assert part["de"][0].tolist() == [1, 1]


def test_an_unknown_language_is_centred_on_the_global_mean():
    X, languages, _ = multilingual()
    space = NeutralSpace().fit(X, languages)
    assert "eu" not in space.languages
    np.testing.assert_allclose(
        space.transform(X, ["eu"] * len(X)), unit(X - space.global_mean), atol=1e-6
    )


def test_a_language_with_no_rows_in_the_sums_is_not_known():
    space = NeutralSpace.from_sums({"de": (np.ones(2), 1), "sw": (np.zeros(2), 0)}, shrinkage=0)
    assert space.languages == ("de",)
    assert np.isfinite(space.centres).all()


def test_a_row_that_centring_leaves_at_zero_stays_zero():
    row = unit(np.random.default_rng(0).normal(size=(1, 64)))
    for dtype in (np.float16, np.float32, np.float64):
        X = np.tile(row.astype(dtype), (9, 1))
        space = NeutralSpace().fit(X, ["de"] * 9)
        assert (X[0] != space.centres[0]).any()  # rounding alone tells them apart
        assert not space.transform(X, ["de"] * 9).any()
    assert not RawSpace().transform(np.zeros((2, 8)), ["de", "de"]).any()


def test_the_removed_directions_are_those_of_the_language_means():
    X, languages, _ = multilingual()
    space = NeutralSpace(components=3).fit(X, languages)
    np.testing.assert_allclose(space.directions @ space.directions.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        space.transform(X, languages) @ space.directions.T.astype(np.float32), 0, atol=1e-6
    )
    # Four languages' centres differ in three directions, and these hold all of it.
    between = space.centres - space.global_mean
    np.testing.assert_allclose(between @ space.directions.T @ space.directions, between, atol=1e-12)


def test_language_leakage_falls_and_topics_appear():
    X, languages, topics = multilingual()
    scores = {}
    for space in (RawSpace(), NeutralSpace().fit(X, languages)):
        vectors = space.transform(X, languages)
        clusters = KMeans(5, n_init=2, random_state=0).fit_predict(vectors)
        scores[type(space)] = (
            normalized_mutual_info_score(languages, clusters),
            normalized_mutual_info_score(topics, clusters),
        )
    assert scores[RawSpace][0] > 0.8
    assert scores[NeutralSpace][0] < 0.05
    assert scores[NeutralSpace][1] > 0.8


def test_drift_of_usage_stays_visible_when_the_space_was_fitted_on_other_rows():
    X, languages, topics = multilingual(spread=0.1)
    space = NeutralSpace().fit(X, languages)
    drifted = (languages == "sw") & (topics == 0)
    usage = space.transform(X[drifted], languages[drifted])
    assert np.linalg.norm(usage.mean(axis=0)) > 0.8


@pytest.mark.parametrize(
    ("sums", "options", "message"),
    [
        ({}, {}, "needs rows"),
        ({"de": (np.ones(2), 0)}, {}, "needs rows"),
        ({"de": (np.ones(2), 1), "sw": (np.ones(3), 1)}, {}, "different lengths"),
        ({"de": (np.array([np.inf, 1]), 1)}, {}, "finite"),
        ({"de": (np.ones(2), 1)}, {"shrinkage": -1}, "shrinkage"),
        ({"de": (np.ones(2), 1)}, {"components": 1}, "0 to 0 directions"),
        ({"de": (np.ones(2), 1)}, {"components": -1}, "components"),
    ],
)
def test_a_space_refuses_sums_and_options_it_cannot_use(sums, options, message):
    with pytest.raises(ValueError, match=message):
        NeutralSpace.from_sums(sums, **options)


def test_a_space_refuses_vectors_of_another_width():
    space = NeutralSpace().fit(*multilingual()[:2])
    with pytest.raises(ValueError, match="31 dimensions, but the space has 32"):
        space.transform(np.ones((1, 31)), ["de"])


def test_loading_refuses_a_file_of_another_kind(tmp_path):
    NeutralSpace().fit(*multilingual()[:2]).save(tmp_path / "neutral.npz")
    assert NeutralSpace.load(tmp_path / "neutral.npz").languages == ("de", "sw", "tr", "vi")
    RawSpace().save(tmp_path / "raw.npz")
    np.savez(tmp_path / "other.npz", centroids=np.ones(3))
    with pytest.raises(ValueError, match=r"raw\.npz: no saved neutral space"):
        NeutralSpace.load(tmp_path / "raw.npz")
    with pytest.raises(ValueError, match="no saved neutral or raw or local space"):
        load_space(tmp_path / "other.npz")
