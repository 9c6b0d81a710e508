"""How far apart languages are: by what linguists know of each, and by their words. Pure, offline.

*What is known.* URIEL (Littell et al., EACL 2017, "URIEL and lang2vec") as released with the
package urielplus (Khan et al., COLING 2025, "URIEL+"). For each kind of feature, the distance of
two languages is the angle between their vectors over the features known of both, scaled to 0 to 1:

  d(u, v) = 2/π · arccos(u·v / (|u| |v|))

A feature that several sources report holds if any of them says so. These are the numbers of the
package's own ``new_distance``. Its data files are read directly because that function needs a
class that writes into the installed package on first use, unsafely between processes, and changes
the root logger; and because it is quadratic in the features (0.2 s for one genetic distance).

*Words.* ``TextProfile`` holds the vocabulary of a corpus as hashes. Words are lower-cased runs of
letters, marks and digits (Unicode's default word boundaries without the rules for apostrophes and
such); in scripts written without spaces between words, every character with its marks is one. The
hash is a fixed function of the characters, without salt.

Shapes: L languages, F features, N texts, T words, C characters.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_ray.errors import UserError
from compass_ray.languages import normalise, to_iso639_3

# kind: file of the package, prefix of the names of its features
_SOURCES = {
    "genetic": ("family_features.npz", ""),
    "geographic": ("geocoord_features.npz", ""),
    "syntactic": ("features.npz", "S_"),
    "phonological": ("features.npz", "P_"),
    "inventory": ("features.npz", "INV_"),
    "featural": ("features.npz", ""),
}
KINDS = tuple(_SOURCES)
_UNKNOWN = -1

_BLOCK_CHARACTERS = 1 << 21
# What a character is to the splitting into words; 0 is a separator.
_LETTER, _UNSPACED, _MARK = 1, 2, 3
# Thai, Lao, Myanmar, Khmer, Tai Le to Tai Tham, Balinese, Kana, Han, Javanese to Tai Viet, ...
_UNSPACED_BLOCKS = (
    (0x0E00, 0x0F00), (0x1000, 0x10A0), (0x1780, 0x1800), (0x1950, 0x1AB0), (0x1B00, 0x1B80),
    (0x3005, 0x3008), (0x3040, 0x3100), (0x31F0, 0x3200), (0x3400, 0x4DC0), (0x4E00, 0xA000),
    (0xA980, 0xAAE0), (0xF900, 0xFB00), (0xFF66, 0xFFA0), (0x1B000, 0x1B170), (0x20000, 0x32400),
)  # fmt: skip
_JOINERS = "\u200c\u200d"  # inside words of Persian and the scripts of India


def uriel_distances(target: str, others: Sequence[str]) -> dict[str, dict[str, float]]:
    """Distance of each language from ``target``, for every kind in ``KINDS``.

    URIEL keeps much of what it knows of a macrolanguage under the macrolanguage's code (Arabic:
    284 features under ``ara``, 66 under ``arb``). So of the codes that name a language, the one
    with most features of the kind is read, and ``to_iso639_3`` decides between equals.

    Args:
        target: BCP-47 code or anything else ``languages.normalise`` knows.
        others: the same, one a language.

    Returns:
        kind: {language as given: distance in 0 to 1}, to four decimals; NaN where no feature of
        the kind is known of both.

    Raises:
        UserError: a language is not known.
    """
    distances = {}
    for kind in KINDS:
        records = _records(kind)
        target_F = records.of(target)
        others_LF = np.array([records.of(other) for other in others]).reshape(-1, len(target_F))
        # More digits would let rounding errors decide between equals.
        angles = _angular(target_F, others_LF).round(4).tolist()
        distances[kind] = dict(zip(others, angles, strict=True))
    return distances


@dataclass(frozen=True, eq=False)
class TextProfile:
    """The vocabulary of a corpus. Profiles of its parts add up to that of the whole.

    Attributes:
        rows: number of texts.
        tokens: number of words.
        types: sorted hashes of the different words, uint64.
    """

    rows: int
    tokens: int
    types: NDArray[np.uint64]

    @classmethod
    def of(cls, texts: Sequence[str]) -> TextProfile:
        profile = cls(0, 0, np.empty(0, np.uint64))
        for block in text_blocks(texts):
            _, hashes_T = word_hashes(block)
            profile += cls(len(block), len(hashes_T), np.unique(hashes_T))
        return profile

    def __add__(self, other: TextProfile) -> TextProfile:
        types = np.union1d(self.types, other.types)
        return TextProfile(self.rows + other.rows, self.tokens + other.tokens, types)

    @property
    def ttr(self) -> float:
        """Type-token ratio; NaN without words."""
        return len(self.types) / self.tokens if self.tokens else float("nan")


def text_blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, cut so that a block's arrays take some 100 MB (or hold one text)."""
    block_N = np.cumsum([len(text) + 1 for text in texts]) // _BLOCK_CHARACTERS
    bounds = [0, *(np.flatnonzero(np.diff(block_N)) + 1).tolist(), len(texts)]
    for start, end in itertools.pairwise(bounds):
        yield texts[start:end]


def word_hashes(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """The words of all texts in order: number of the text and hash of the word, each [T]."""
    # One text a line: a few passes over one array instead of a loop over millions of words.
    lines = "".join("\n" + text.replace("\n", " ") for text in texts).lower()
    encoded = unicodedata.normalize("NFC", lines).encode("utf-32-le", "surrogatepass")
    codes_C = np.frombuffer(encoded, dtype=np.uint32)
    kinds_C = _kinds_of_characters()[codes_C]
    # A mark is what it stands on: part of a word, or of nothing (as after an emoji).
    bases = np.maximum.accumulate(np.where(kinds_C == _MARK, 0, np.arange(len(kinds_C))))
    bases_C = kinds_C[bases]
    starts_C = (kinds_C == _LETTER) | (kinds_C == _UNSPACED)
    starts_C[1:] &= (kinds_C[1:] == _UNSPACED) | (bases_C[:-1] != _LETTER)
    in_word = np.flatnonzero(bases_C)
    starts_T = np.flatnonzero(starts_C[in_word])
    if not len(starts_T):
        return np.empty(0, np.int64), np.empty(0, np.uint64)
    lengths_T = np.diff(starts_T, append=len(in_word))
    place = np.arange(len(in_word)) - np.repeat(starts_T, lengths_T)
    terms = (codes_C[in_word].astype(np.uint64) + np.uint64(1)) * _powers(int(place.max()))[place]
    rows_C = np.cumsum(codes_C == ord("\n")) - 1
    return rows_C[in_word[starts_T]], mixed(np.add.reduceat(terms, starts_T))


def mixed(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread hashes over all 64 bits (the last step of SplitMix64, Steele et al., 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


@dataclass(frozen=True, eq=False)
class _Records:
    """One kind of feature for every language of URIEL: L languages, F features, -1 unknown."""

    rows: Mapping[str, int]
    values_LF: NDArray[Any]

    def of(self, language: str) -> NDArray[np.float64]:
        codes = [to_iso639_3(language), *_synonyms().get(_base(language), ())]
        found = [self.values_LF[self.rows[code]] for code in codes if code in self.rows]
        if not found:
            return np.full(self.values_LF.shape[1], float(_UNKNOWN))
        known = [np.count_nonzero(values_F != _UNKNOWN) for values_F in found]
        return np.asarray(found[int(np.argmax(known))], dtype=np.float64)


@cache
def _records(kind: str) -> _Records:
    file, prefix = _SOURCES[kind]
    languages, features, values_LF = _table(file)
    rows = {str(code): row for row, code in enumerate(languages)}
    return _Records(rows, values_LF[:, np.char.startswith(features, prefix)])


@cache
def _table(file: str) -> tuple[NDArray[np.str_], NDArray[np.str_], NDArray[Any]]:
    with (files("urielplus") / "database" / "original_uriel" / file).open("rb") as stream:
        loaded = np.load(stream)
        # With -1 for unknown, the largest value over the sources is their union.
        values_LF = loaded["data"].max(axis=2)
        languages, features = loaded["langs"], loaded["feats"]
    # All but the geographic ones are -1, 0 or 1, and the genetic ones would take 120 MB.
    small_LF = values_LF.astype(np.int8)
    return languages, features, small_LF if (small_LF == values_LF).all() else values_LF


@cache
def _synonyms() -> dict[str, list[str]]:
    """URIEL's codes for each of our languages: ``ar`` has ``ara`` and ``arb``."""
    synonyms: dict[str, list[str]] = {}
    for code in map(str, _table("features.npz")[0]):
        try:
            synonyms.setdefault(normalise(code), []).append(code)
        except UserError:
            continue
    return synonyms


def _base(language: str) -> str:
    return normalise(language).partition("-")[0]


def _angular(u_F: NDArray[np.float64], v_LF: NDArray[np.float64]) -> NDArray[np.float64]:
    shared_LF = (u_F != _UNKNOWN) & (v_LF != _UNKNOWN)
    u_LF, v_LF = np.where(shared_LF, u_F, 0.0), np.where(shared_LF, v_LF, 0.0)
    # A language that has none of the shared features points nowhere; by the package's convention
    # it points in all directions equally.
    u_LF, v_LF = (np.where(x.any(axis=1, keepdims=True), x, shared_LF) for x in (u_LF, v_LF))
    lengths_L = np.linalg.norm(u_LF, axis=1) * np.linalg.norm(v_LF, axis=1)
    with np.errstate(invalid="ignore"):
        cosines_L = (u_LF * v_LF).sum(axis=1) / lengths_L
    return np.asarray(2 / np.pi * np.arccos(np.clip(cosines_L, -1, 1)), dtype=np.float64)


def _powers(highest: int) -> NDArray[np.uint64]:
    """Powers of the multiplier of a polynomial hash, modulo 2**64."""
    factors = np.full(highest + 1, 0x9E3779B97F4A7C15, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


@cache
def _kinds_of_characters() -> NDArray[np.uint8]:
    kinds = np.zeros(0x110000, np.uint8)
    for code in range(len(kinds)):
        category = unicodedata.category(chr(code))[0]
        if category in "LNM":
            kinds[code] = _MARK if category == "M" else _LETTER
    for start, end in _UNSPACED_BLOCKS:
        block = kinds[start:end]
        block[block == _LETTER] = _UNSPACED
    kinds[[ord(joiner) for joiner in _JOINERS]] = _MARK
    return kinds
