"""What is dropped of rows that were read well: repeated, too short or long, in another language.

Rejected rows fit no format and are mistakes of the input; dropped rows fit, and are not wanted.
Repeated rows always go; everything else is off by default. Knows nothing of files or Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from compass_ray import languages
from compass_ray.config import Cleaning

TOO_SHORT = "shorter than min_chars"
TOO_LONG = "longer than max_chars"
OTHER_LANGUAGE = "in another language"
NOT_LISTED = "in no language that their source lists"
DUPLICATE = "exact duplicates"

# Enough of a text to tell its language by, and a bound on the time a long one takes.
_LOOKED_AT = 1000


def clean(rows: pa.Table, config: Cleaning) -> tuple[pa.Table, Counter[str]]:
    """The rows of ``records.SCHEMA`` that stay, in their order, and how many go by reason.

    A row goes for one reason, the first of the three that holds.
    """
    reasons: dict[str, NDArray[np.bool_]] = {}
    if config.min_chars is not None:
        reasons[TOO_SHORT] = _characters(rows) < config.min_chars
    if config.max_chars is not None:
        reasons[TOO_LONG] = _characters(rows) > config.max_chars
    if config.language_confidence is not None:
        reasons[OTHER_LANGUAGE] = _in_another_language(rows, config.language_confidence)
    dropped: Counter[str] = Counter()
    kept = np.ones(rows.num_rows, bool)
    for reason, holds in reasons.items():
        dropped[reason] = int((kept & holds).sum())
        kept &= ~holds
    return rows.filter(pa.array(kept)), +dropped


def first_seen(ids: Iterable[Sequence[str]]) -> list[NDArray[np.bool_]]:
    """Of each table, which rows repeat no row before them, in that table or an earlier one.

    Args:
        ids: ``records.row_id`` of the rows of one table after the other, 32 hex digits each; at
            least one table. Some 50 bytes a row are held.
    """
    tables = [np.frombuffer(bytes.fromhex("".join(table)), "<u8").reshape(-1, 2) for table in ids]
    halves_N2 = np.concatenate(tables)
    # Stable: of equal ids the earliest comes first.
    order_N = np.lexsort((halves_N2[:, 0], halves_N2[:, 1]))
    repeated_N = np.zeros(len(halves_N2), bool)
    following_N = order_N[1:]
    repeated_N[following_N] = (halves_N2[following_N] == halves_N2[order_N[:-1]]).all(axis=1)
    return np.split(~repeated_N, np.cumsum([len(table) for table in tables])[:-1])


def _characters(rows: pa.Table) -> NDArray[np.int64]:
    response = pc.fill_null(pc.utf8_length(rows["response"]), 0)
    lengths: NDArray[np.int64] = pc.add(pc.utf8_length(rows["prompt"]), response).to_numpy()
    return lengths


def _in_another_language(rows: pa.Table, confidence: float) -> NDArray[np.bool_]:
    """Rows whose text is, with at least this probability, not in the language they state.

    A language the identifier does not know is never told from others: its rows stay.
    """
    identifier, codes = _identifier()
    known = set(codes.values())
    other = np.zeros(rows.num_rows, bool)
    columns = (rows[name].to_pylist() for name in ("prompt", "response", "language"))
    for number, (prompt, response, stated) in enumerate(zip(*columns, strict=True)):
        stated = stated.partition("-")[0]
        if stated not in known:
            continue
        label, probability = identifier.classify(f"{prompt}\n{response or ''}"[:_LOOKED_AT])
        other[number] = probability >= confidence and codes[label] != stated
    return other


@cache
def _identifier() -> tuple[Any, dict[str, str]]:
    """The identifier, and its labels as our languages (dialects as their macrolanguage)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return identifier, {
        label: (languages.find(label) or label).partition("-")[0]
        for label in map(str, identifier.labels)
    }
