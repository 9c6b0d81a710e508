from __future__ import annotations

import io

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from compass_ray.clustering import fit_kmeans
from compass_ray.embedding.local import LocalSpace, load_space
from compass_ray.embedding.space import NeutralSpace, RawSpace

LANGUAGES = ("de", "sw", "tr", "vi")


def accented(rows: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of five topics, of which each language speaks in a way of its own."""
    rng = np.random.default_rng(0)
    codes, topics = rng.integers(4, size=rows), rng.integers(5, size=rows)
    meaning, accent = 2 * rng.normal(size=(5, 32)), rng.normal(size=(4, 5, 32))
    X = meaning[topics] + accent[codes, topics] + 0.3 * rng.normal(size=(rows, 32))
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    return unit.astype(np.float32), np.array(LANGUAGES)[codes], topics


@pytest.fixture(scope="module")
def spaces() -> tuple[NeutralSpace, LocalSpace]:
    X, languages, _ = accented()
    neutral = NeutralSpace().fit(X, languages)
    return neutral, LocalSpace.fit(neutral, neutral.transform(X, languages), languages, 5, 0)


def test_what_a_language_makes_of_a_topic_is_taken_away_and_the_topic_stays(
    spaces: tuple[NeutralSpace, LocalSpace],
) -> None:
    X, languages, topics = accented()
    found = {}
    for space in spaces:
        vectors = space.transform(X, languages)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        clusters, _ = fit_kmeans(vectors, 20, seed=0).assign(vectors)
        found[type(space)] = (
            normalized_mutual_info_score(languages, clusters),
            normalized_mutual_info_score(topics, clusters),
        )
    assert found[NeutralSpace][0] > 0.3
    assert found[LocalSpace][0] < 0.1
    assert found[LocalSpace][1] >= found[NeutralSpace][1] - 0.01


def test_a_saved_space_transforms_new_rows_as_before(
    spaces: tuple[NeutralSpace, LocalSpace],
) -> None:
    X, languages, _ = accented(50)
    buffer = io.BytesIO()
    spaces[1].save(buffer)
    loaded = load_space(io.BytesIO(buffer.getvalue()))
    assert isinstance(loaded, LocalSpace)
    assert "de" in loaded.languages and "ja" not in loaded.languages
    np.testing.assert_array_equal(loaded.transform(X, languages), spaces[1].transform(X, languages))


def test_a_language_the_pool_lacks_stays_where_the_neutral_space_puts_it(
    spaces: tuple[NeutralSpace, LocalSpace],
) -> None:
    X, _, _ = accented(50)
    neutral, local = (space.transform(X, ["ja"] * 50) for space in spaces)
    np.testing.assert_allclose(local, neutral, atol=1e-6)


def test_a_topic_the_language_has_no_rows_in_moves_nothing() -> None:
    X, languages, topics = accented()
    kept = ~((languages == "de") & (topics == 0))
    neutral = NeutralSpace().fit(X[kept], languages[kept])
    Z = neutral.transform(X[kept], languages[kept])
    space = LocalSpace.fit(neutral, Z, languages[kept], 5, 0)
    rows = neutral.transform(X[~kept], languages[~kept])
    moved = np.linalg.norm(space.refine(rows, languages[~kept]) - rows, axis=1)
    assert np.median(moved) < 0.01


def test_every_kind_of_space_is_read_by_the_same_reader(tmp_path) -> None:
    X, languages, _ = accented(50)
    for space in (RawSpace(), NeutralSpace().fit(X, languages)):
        space.save(tmp_path / "space.npz")
        assert type(load_space(tmp_path / "space.npz")) is type(space)
