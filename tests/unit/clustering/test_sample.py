from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from compass_ray.clustering.sample import balanced_shares, draw


def ids(count: int, salt: str = "") -> list[str]:
    return [
        hashlib.blake2b(f"{salt}{i}".encode(), digest_size=16).hexdigest() for i in range(count)
    ]


def test_a_small_language_gives_all_and_the_rest_share_equally() -> None:
    shares = balanced_shares({"en": 10_000, "de": 1_000, "sw": 50}, 650)
    assert shares["sw"] == 1.0
    assert shares["en"] * 10_000 == pytest.approx(300)
    assert shares["de"] * 1_000 == pytest.approx(300)


def test_everything_is_drawn_when_there_is_less_than_asked() -> None:
    shares = balanced_shares({"en": 10, "de": 5}, 100)
    assert len(draw(ids(15), ["en"] * 10 + ["de"] * 5, shares)) == 15


def test_the_draw_is_balanced_whatever_the_sizes() -> None:
    languages = ["en"] * 20_000 + ["sw"] * 2_000
    shares = balanced_shares(Counter(languages), 2_000)
    drawn = Counter(languages[i] for i in draw(ids(22_000), languages, shares))
    # Five standard deviations of a binomial count around 1,000.
    assert abs(drawn["en"] - 1_000) < 160
    assert abs(drawn["sw"] - 1_000) < 120


def test_the_draw_is_the_same_however_rows_are_sharded() -> None:
    names, languages = ids(1_000), ["en"] * 1_000
    shares = {"en": 0.3}
    whole = [names[i] for i in draw(names, languages, shares)]
    halves = [
        part[i]
        for part in (names[:400], names[400:])
        for i in draw(part, ["en"] * len(part), shares)
    ]
    assert whole == halves
