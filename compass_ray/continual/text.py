"""What a look at a usage log came to, for a person or a script."""

from __future__ import annotations

import json
from typing import Any

from compass_ray.continual.watch import Look
from compass_ray.strict_json import to_json


def shown(look: Look, as_json: bool) -> str:
    """What a look came to, for a person or, in one line, for a script."""
    if not as_json:
        return table(look)
    return to_json(
        {
            "drifted": look.drifted,
            "prompts": dict(look.prompts),
            "windows": look.windows,
            "standing": look.standing,
        },
        indent=None,
    )


def table(look: Look) -> str:
    """The windows of a look, a line each, and what moved in those that drifted."""
    lines = []
    for window in look.windows or look.standing.values():
        verdict = "drift" if window["drifted"] else "stable"
        if "loss" in window:
            loss = window["loss"]
            verdict += f", loss {loss['mean']:.3f} (threshold {loss['threshold']:.3f})"
            verdict += " worse" if window["worse"] else ""
        so_far = " so far" if window.get("partial") else ""
        columns = [
            f"{window['language']:<5} window {window['window']:>3} "
            f"{window['rows']:>6,} prompts{so_far}",
            f"divergence {window['divergence']:.3f} (threshold {window['threshold']:.3f})",
            f"novel {window['novel_share']:.1%} (threshold {window['novel_threshold']:.1%})",
            verdict,
        ]
        lines.append("  ".join(columns))
        if not window["drifted"]:
            continue
        for move in window["moves"]:
            share = f"{move['before']:.1%} -> {move['after']:.1%}"
            lines.append(f"      cluster {move['cluster']:>3}: {share:<16} {_first(move)}".rstrip())
        if window["novel"]:
            shown = window.get("novel_examples", [])
            lines += [f"      novel: {json.dumps(text, ensure_ascii=False)}" for text in shown]
    return "\n".join(lines)


def _first(move: dict[str, Any]) -> str:
    examples = move.get("examples")
    return json.dumps(examples[0], ensure_ascii=False) if examples else ""
