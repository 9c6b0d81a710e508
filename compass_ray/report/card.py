"""The model card beside each adapter: what it is, what it was trained on, and how it scored.

Read from what a run left behind, as the report is; in the form the hub reads (YAML, then Markdown).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from compass_ray import languages
from compass_ray.artifacts import Storage
from compass_ray.continual.registry import Registry, Version, version_name

CARD_FILE = "README.md"
NAMED_SOURCES = 8

Row = Mapping[str, Any]


def write_cards(storage: Storage, run: str) -> None:
    """Write ``README.md`` into the current version of every language's adapter."""
    manifest = storage.read_json(f"runs/{run}/manifest.json")
    scores = f"runs/{run}/scores.parquet"
    rows = storage.read_table(scores).to_pylist() if storage.exists(scores) else []
    for language in manifest["config"]["languages"]:
        version = Registry(storage, run, language).current()
        if version is None:
            continue
        subset = f"runs/{run}/subsets/{language}.parquet"
        # An update was trained on rows of its own, which its version tells of.
        made_by_run = version.about["kind"] == "run" and storage.exists(subset)
        table = storage.read_table(subset, ["language", "strategy"]) if made_by_run else None
        picked = [
            row["language"]
            for row in (table.to_pylist() if table else [])
            if row["strategy"] != "own"
        ]
        mine = [row for row in rows if row["language"] == language and made_by_run]
        text = model_card(manifest, language, version, picked, mine)
        storage.write_bytes(f"{version.folder}/{CARD_FILE}", text.encode())


def model_card(
    manifest: Row, language: str, version: Version, picked: Iterable[str], scores: Sequence[Row]
) -> str:
    """The card as text.

    Args:
        manifest: of the run.
        language: code of the adapter's language.
        version: which of its adapters.
        picked: language of every row that came from another language.
        scores: rows of ``scores.parquet`` that are about this adapter.
    """
    training = manifest["config"]["training"]
    name = languages.name(language)
    front = {
        "base_model": training["model"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "language": [language],
        "tags": [training["adapter"]["type"], "compass-ray"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {name} adapter of {manifest['name']}, {version.name}",
        f"Adapts `{training['model']}` to what users ask in {name}. Load it with PEFT:",
        "```python\nmodel = PeftModel.from_pretrained(base_model, folder_of_this_file)\n```",
        "## Data",
        _data(manifest, language, version, Counter(picked)),
        "## Training",
        _training(manifest, language, version),
    ]
    if scores:
        parts += ["## Scores", _scores(scores)]
    if version.about["kind"] == "update":
        parts += ["## Update", _update(version)]
    made = ", ".join(f"{package} {number}" for package, number in manifest["versions"].items())
    parts.append(f"Made with {made}; training {version.about['fingerprint']}.")
    return "\n\n".join(parts) + "\n"


def _stage(manifest: Row, stage: str, language: str) -> Row:
    told: Row = manifest["stages"].get(stage, {}).get("languages", {}).get(language, {})
    return told


def _data(manifest: Row, language: str, version: Version, sources: Counter[str]) -> str:
    told = version.about.get("subset") or _stage(manifest, "sample", language)
    if not told:
        return "Not recorded."
    settings = manifest["config"]["sampling"]
    clusters = manifest["stages"].get("cluster", {}).get("k", manifest["config"]["clustering"]["k"])
    lines = [
        f"- {told['own']:,} rows of the language itself",
        f"- {told['picked']:,} rows from other languages, chosen by `{told['strategy']}` with a "
        f"budget of {settings['budget']:,} {settings['budget_unit']} over {clusters} clusters",
        f"- Jensen-Shannon divergence from usage: {told['js_before']:.3f} before, "
        f"{told['js_after']:.3f} after",
    ]
    if sources:
        named = [f"{code} {count:,}" for code, count in sources.most_common(NAMED_SOURCES)]
        others = len(sources) - len(named)
        more = f" and {others} more" if others > 0 else ""
        lines.append(f"- from {', '.join(named)}{more}")
    return "\n".join(lines)


def _training(manifest: Row, language: str, version: Version) -> str:
    told = version.about.get("training") or _stage(manifest, "train", language)
    settings = manifest["config"]["training"]
    adapter = settings["adapter"]
    lines = [
        f"- `{adapter['type']}`, rank {adapter['r']}, alpha {adapter['alpha']}, dropout "
        f"{adapter['dropout']}, on {adapter['target_modules']}",
        f"- peak learning rate {settings['learning_rate']:g}, {settings['batch_size']} sequences "
        f"of up to {settings['max_length']:,} tokens a step",
    ]
    if told:
        lines.append(f"- {told['steps']:,} steps, {told['tokens']:,} tokens")
        if told.get("validation_loss") is not None:
            lines.append(
                f"- validation loss {told['validation_loss']:.4f} nats a token on "
                f"{told['validation_rows']:,} rows held out, after step {told['best_step']:,}"
            )
    return "\n".join(lines)


def _scores(scores: Sequence[Row]) -> str:
    lines = [
        "| task | items | base | adapter | gain [interval] |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in scores:
        numbers = ["-" if row[key] is None else f"{row[key]:.3f}" for key in ("base", "adapter")]
        gain = "-"
        if row["gain"] is not None:
            gain = f"{row['gain']:+.3f} [{row['gain_low']:+.3f}, {row['gain_high']:+.3f}]"
        lines.append(f"| {row['task']} | {row['n']} | {' | '.join(numbers)} | {gain} |")
    return "\n".join(lines)


def _update(version: Version) -> str:
    about = version.about
    return (
        f"Trained on from {version_name(about['parent'])} for usage that had moved; "
        f"{about['usage']['prompts']:,} prompts of it were seen."
    )
