"""A finished run, opened by its folder: configuration, adapters, and where texts belong in it.

Everything is read from the run directory, so that neither the cache nor Ray is needed to watch.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_ray.artifacts import Storage
from compass_ray.clustering.kmeans import Clusters
from compass_ray.config import Config, Source
from compass_ray.continual.drift import Located
from compass_ray.continual.reference import REFERENCE, Reference
from compass_ray.continual.registry import Registry, Version
from compass_ray.embedding.encoders import BUNDLED, Encoder, check_encoder, load_encoder
from compass_ray.embedding.local import Space, load_space
from compass_ray.errors import UserError
from compass_ray.loading import build_config

# Encoders read 512 tokens or so; the bundled one would read on, for minutes, through a pasted file.
READ_CHARS = 2000

SPACE = "clusters/space.npz"
CENTROIDS = "clusters/centroids.npz"


@dataclass(frozen=True)
class RunFolder:
    """``<storage>/runs/<name>`` of a run that has trained its adapters."""

    storage: Storage
    name: str
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: str) -> RunFolder:
        """Raises ``UserError`` if no finished run is there."""
        # The options of a URI, such as the region of a bucket, stand after the folder.
        folder, mark, options = path.partition("?") if "://" in path else (path, "", "")
        if "://" not in path:
            folder = str(Path(folder).expanduser().resolve())
        parent, _, name = folder.rstrip("/").rpartition("/")
        root, _, runs = parent.rpartition("/")
        storage = Storage.open(root + mark + options) if root else None
        if storage is None or runs != "runs" or not storage.exists(f"runs/{name}/manifest.json"):
            raise UserError(
                f"{path}: no run; expected the folder of one, such as outputs/runs/demo"
            )
        if not storage.exists(f"runs/{name}/{CENTROIDS}"):
            raise UserError(
                f"{path}: the run has no {CENTROIDS}, so it has not trained its adapters or was "
                "made by an older version; run compass-ray train with its configuration"
            )
        return cls(storage, name, storage.read_json(f"runs/{name}/manifest.json"))

    @cached_property
    def config(self) -> Config:
        where = self.storage.location(f"runs/{self.name}/manifest.json")
        config = build_config(self.manifest["config"], where=where)
        # What was typed may have been relative to a folder that this process is not in.
        run = config.run.model_copy(update={"storage": self.storage.uri})
        return config.model_copy(update={"run": run})

    def usage_source(self, path: str) -> Source:
        """New usage at ``path``, read as the run read its own where that was all read alike."""
        kept = self.storage.location(self.path("monitor")).partition("?")[0]
        if path.startswith(f"{kept}/"):
            return Source(path=path)  # a window that drifted, which has our own columns
        own = self.config.corpora.usage
        alike: dict[str, Any] = {
            key: getattr(own[0], key)
            for key in ("columns", "format", "language")
            if len({str(getattr(source, key)) for source in own}) == 1
        }
        if len(self.config.languages) == 1:
            alike["language"] = alike.get("language") or self.config.languages[0]
        return Source(path=path, **alike)

    def registry(self, language: str) -> Registry:
        return Registry(self.storage, self.name, language)

    def current(self, language: str) -> Version:
        """The current adapter; ``UserError`` if the language has none."""
        version = self.registry(language).current() if language in self.config.languages else None
        if version is None:
            known = ", ".join(self.languages()) or "none"
            raise UserError(f"{language}: no adapter in run {self.name}; it has {known}")
        return version

    def languages(self) -> list[str]:
        """Languages that have an adapter."""
        return [lang for lang in self.config.languages if self.registry(lang).current()]

    def reference(self, version: Version) -> Reference:
        return Reference.from_bytes(self.storage.read_bytes(f"{version.folder}/{REFERENCE}"))

    def path(self, name: str) -> str:
        return f"runs/{self.name}/{name}"

    def read_space(self) -> Space:
        return load_space(io.BytesIO(self.storage.read_bytes(self.path(SPACE))))

    def read_clusters(self) -> Clusters:
        return Clusters.load(io.BytesIO(self.storage.read_bytes(self.path(CENTROIDS))))


class Locator:
    """Puts texts into a run's clusters, with the run's own encoder, space and centroids."""

    def __init__(self, run: RunFolder) -> None:
        check_encoder(run.config.embedding)
        self._settings = run.config.embedding
        self._space = run.read_space()
        self._clusters = run.read_clusters()

    @property
    def k(self) -> int:
        return len(self._clusters.centroids)

    @cached_property
    def _encoder(self) -> Encoder:
        if self._settings.model == BUNDLED:
            return load_encoder(self._settings, "cpu")
        import torch

        return load_encoder(self._settings, "cuda" if torch.cuda.is_available() else "cpu")

    def vectors(self, texts: Sequence[str], language: str) -> NDArray[np.float32]:
        """Unit vectors in the run's space, [N, D]."""
        # Stored vectors are float16; new ones must not differ from them by more than they do.
        raw = self._encoder.encode([text[:READ_CHARS] for text in texts]).astype(np.float16)
        return self._space.transform(raw, [language] * len(texts))

    def locate(
        self, texts: Sequence[str], language: str, weights: Sequence[float] | None = None
    ) -> Located:
        """Cluster of each text and distance to its centroid; every weight 1 unless given."""
        if not len(texts):
            return Located(np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0))
        clusters_N, distances_N = self._clusters.assign(self.vectors(texts, language))
        weights_N = np.ones(len(texts)) if weights is None else np.asarray(weights, np.float64)
        return Located(clusters_N, distances_N, weights_N)
