"""A run's folder as its stages leave it, made up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from compass_ray.artifacts import Storage
from compass_ray.records import SCHEMA

RUN = "demo"
CLUSTERS = 40
PICKED, OWN = 300, 1200
SUBJECTS = ("months", "currencies", "territories", "--><script>alert(2)</script>", "አሃዞች")
SCRIPT = "Say <script>alert('1')</script> & <b>bold</b>"
PROMPTS = {
    "am": "የኢትዮጵያ ዋና ከተማ ማን ናት? አዲስ አበባ ወይስ ሌላ?",
    "ar": "ما هي عاصمة مصر؟ أجب بكلمة واحدة (مثلًا: القاهرة).",
    "es": SCRIPT,
    "fr": "Quelle est la capitale du Pérou ? " + "Réponds en détail. " * 40,
    "ja": "日本の首都はどこですか。" * 40,
}
SAMPLED = {
    "am": {"own": OWN, "picked": PICKED, "budget": 400, "js_before": 0.4517, "js_after": 0.1204}
    | {"unspent": 100, "available": 567, "own_contaminated": 3},
    "de": {"own": OWN, "picked": PICKED, "budget": 2000, "js_before": 0.2096, "js_after": 0.0311},
}
CHOSEN = {"cluster": pa.int32(), "gap": pa.float64(), "score": pa.float32()}
SUBSET_SCHEMA = pa.schema([*SCHEMA, *CHOSEN.items(), ("strategy", pa.string())])
MANIFEST = """
name: demo
seed: 0
config:
  sampling: {strategy: compass, budget: 2000}
  training: {model: HuggingFaceTB/SmolLM2-135M-Instruct}
  corpora:
    {train: [{path: "https://example.org/<data>.jsonl"}], cleaning: {near_duplicates: 0.98}}
versions: {compass_ray: 0.1.0, python: 3.11.2, torch: 2.13.0}
cluster: {nodes: 1, cpus: 2.0, gpus: 0.0}
started: "2026-07-14T09:12:33+00:00"
seconds: 3725.4
stages:
  records:
    {reused: 18, computed: 2, seconds: 4.2, rejected: {auxiliary: 12},
    dropped: {auxiliary: {shorter than min_chars: 7, exact duplicates: 1234}},
    rows: {auxiliary: 54321, train: 2400, usage: 900, evaluation: 240}}
  embed: {reused_rows: 50000, computed_rows: 7621, seconds: 612.0, dimension: 384}
  cluster:
    {reused: false, seconds: 6.1, k: 40, backend: sklearn, noise: 1234, fit_rows: 9876,
    near_duplicates: {"/data/<a>.jsonl": 5, atlas: 4321},
    novel: {auxiliary: {rows: 54321, novel: 543}, usage: {rows: 900, novel: 90}},
    measure: dbcv, curve: [{k: 20, score: 0.21}, {k: 40, score: 0.34}, {k: 75, score: -0.05}],
    diagnostics: {language_leakage_chance: 0.0123,
    language_leakage: 0.0314, language_leakage_raw: 0.6742, silhouette: 0.0518,
    silhouette_raw: 0.1234, subject_nmi: null, sample_rows: 5000}}
  sample: {seconds: 2.0}
  train: {seconds: 2400.0, failures: {sw: "OutOfMemoryError: <worker> 3 was killed"}}
  evaluate: {seconds: 330.0, items_reused: 120, items_computed: 360}
"""


def write_run(storage: Storage, languages: tuple[str, ...] = ("am", "de")) -> None:
    rng = np.random.default_rng(12)
    storage.write_json(f"runs/{RUN}/manifest.json", manifest(languages))
    scores = []
    for language in languages:
        tables = {"gaps": gap_table(rng), "losses": loss_table(rng), "items": item_table(rng)}
        tables["subsets"] = subset(rng, language, tables["gaps"])
        for folder, table in tables.items():
            storage.write_table(f"runs/{RUN}/{folder}/{language}.parquet", table)
        scores.append(score(language, tables["items"]))
    storage.write_table(f"runs/{RUN}/scores.parquet", pa.Table.from_pylist(scores))
    storage.write_table(f"runs/{RUN}/clusters.parquet", cluster_table(rng))


def manifest(languages: tuple[str, ...] = ("am", "de")) -> dict[str, Any]:
    trained = {"reused": False, "steps": 240, "tokens": 123456, "truncated": 3, "seconds": 1100.5}
    refused = {"refused_duplicates": 17, "refused_far": 250, "refused_contaminated": 6}
    done = {"reused": True, "unspent": 0, "budget_unit": "rows", **refused}
    sampled = {language: done | SAMPLED.get(language, SAMPLED["de"]) for language in languages}
    told = yaml.safe_load(MANIFEST)
    told["config"]["languages"] = list(languages)
    told["stages"]["sample"]["languages"] = sampled
    told["stages"]["train"]["languages"] = dict.fromkeys(languages, trained)
    return told


def gap_table(rng: np.random.Generator) -> pa.Table:
    target = rng.dirichlet(np.full(CLUSTERS, 0.8))
    have = rng.multinomial(OWN, rng.dirichlet(np.full(CLUSTERS, 0.5)))
    short = np.maximum(target - have / OWN, 0)
    added = rng.multinomial(PICKED, short / short.sum())
    cluster = np.arange(CLUSTERS, dtype=np.int32)
    shares = {"before": have / OWN, "after": (have + added) / (OWN + PICKED)}
    return pa.table({"cluster": cluster, "target": target, "have": have, "added": added, **shares})


def subset(rng: np.random.Generator, language: str, gaps: pa.Table) -> pa.Table:
    gap = gaps["target"].to_numpy() - gaps["before"].to_numpy()
    rows: list[dict[str, Any]] = []
    for column, strategy in (("have", "own"), ("added", "compass")):
        for cluster in np.repeat(np.arange(CLUSTERS), gaps[column].to_numpy()):
            row = {"id": f"{len(rows):032x}", "cluster": int(cluster), "strategy": strategy}
            row |= {"subject": SUBJECTS[cluster % len(SUBJECTS)], "source": "made up", "weight": 1}
            source = language if strategy == "own" else str(rng.choice(list(PROMPTS)))
            text = PROMPTS.get(source, "own question")
            row |= {"language": source, "prompt": f"{text} [{len(rows)}]", "response": text}
            if strategy != "own":
                row |= {"gap": gap[cluster], "score": rng.uniform(0.5, 1)}
            rows.append(row)
    return pa.Table.from_pylist(rows, schema=SUBSET_SCHEMA)


def cluster_table(rng: np.random.Generator) -> pa.Table:
    places = {axis: rng.normal(size=CLUSTERS).astype(np.float32) for axis in "xy"}
    languages = rng.choice([*PROMPTS, "de", "sw", "zu"], CLUSTERS)
    told = {"rows": rng.integers(1, 900, CLUSTERS), "language": pa.array(languages.tolist())}
    cluster = np.arange(CLUSTERS, dtype=np.int32)
    return pa.table({"cluster": cluster, **places, **told, "share": rng.uniform(0.1, 1, CLUSTERS)})


def loss_table(rng: np.random.Generator, steps: int = 700) -> pa.Table:
    step = np.arange(1, steps + 1)
    loss = 1.1 + 1.6 * np.exp(-step / 90) + rng.normal(0, 0.12, steps)
    same = {name: np.full(steps, 1.0) for name in ("learning_rate", "tokens", "targets", "seconds")}
    return pa.table({"step": step, "loss": loss, **same})


def item_table(rng: np.random.Generator, count: int = 120) -> pa.Table:
    subjects = [SUBJECTS[i * i % len(SUBJECTS)] for i in range(count)]
    right = {"base_correct": rng.random(count) < 0.41, "adapter_correct": rng.random(count) < 0.6}
    same = {"task": "global_mmlu", "question": "?", "options": ["a", "b", "c", "d"], "answer": 0}
    repeated = {name: [value] * count for name, value in same.items()}
    ids = [str(i) for i in range(count)]
    return pa.table({"id": ids, "subject": subjects, **repeated, **right})


def score(language: str, items: pa.Table) -> dict[str, Any]:
    base, adapter = (pc.mean(items[f"{who}_correct"]).as_py() for who in ("base", "adapter"))
    row: dict[str, Any] = {"language": language, "task": "global_mmlu", "n": items.num_rows}
    for name, value in (("base", base), ("adapter", adapter), ("gain", adapter - base)):
        row |= {name: value, f"{name}_low": value - 0.083, f"{name}_high": value + 0.083}
    return row | {"p_value": 0.0004, "p_holm": 0.0008, "cohens_d": 0.321, "unparsed": 0.0125}
