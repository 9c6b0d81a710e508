"""Embed every part of the corpora that the cache does not hold yet.

Vectors are cached by encoder and part content, so adding a corpus embeds only what is new, and
the same rows in two roles are embedded once.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from compass_ray import artifacts
from compass_ray.artifacts import Artifact, Storage
from compass_ray.claims import claim
from compass_ray.config import Config, Embedding
from compass_ray.corpora.stage import Corpus, Part
from compass_ray.embedding.encoders import Device, encoder_device, load_encoder
from compass_ray.errors import UserError
from compass_ray.models import for_workers, model_identity
from compass_ray.parallel import map_parts_on_actors
from compass_ray.progress import Progress
from compass_ray.resources import cluster, encoder_actors

log = logging.getLogger(__name__)

STAGE = "embed"
VERSION = 1
VECTORS = "vectors.npy"


@dataclass(frozen=True)
class EmbeddedPart:
    """A part and its raw unit vectors, float16 [N, D] on disk, row for row."""

    part: Part
    vectors: Artifact

    def read_vectors(self) -> NDArray[np.float16]:
        array: NDArray[np.float16] = np.load(io.BytesIO(self.vectors.read_bytes(VECTORS)))
        return array


@dataclass(frozen=True)
class Embedded:
    parts: tuple[EmbeddedPart, ...]
    reused_rows: int
    computed_rows: int

    @property
    def dimension(self) -> int:
        return int(self.parts[0].vectors.summary["dimension"])


@dataclass(frozen=True)
class _Work:
    storage: Storage
    fingerprint: str
    part: Part


def embed(config: Config, storage: Storage, corpus: Corpus) -> Embedded:
    """Vectors of the auxiliary, train and usage rows, computed or found in the cache."""
    parts = corpus.of("auxiliary", "train", "usage")
    fingerprints = vectors_fingerprints(config.embedding, parts)
    work = [_Work(storage, *item) for item in zip(fingerprints, parts, strict=True)]
    found = artifacts.find_all(storage, STAGE, fingerprints)
    computed = 0
    if any(fingerprint not in found for fingerprint in fingerprints):
        # One pass fills the cluster; another run's of this encoder may well be of the same rows.
        encoder = artifacts.fingerprint(encoder=_encoder_identity(config.embedding))
        with claim(storage, STAGE, encoder):
            found = artifacts.find_all(storage, STAGE, fingerprints)
            missing = {item.fingerprint: item for item in work if item.fingerprint not in found}
            computed = sum(item.part.rows for item in missing.values())
            _tell(parts, computed)
            for vectors in _embed_missing(config.embedding, list(missing.values())):
                found[vectors.fingerprint] = vectors
    else:
        _tell(parts, computed)
    embedded = tuple(EmbeddedPart(item.part, found[item.fingerprint]) for item in work)
    return Embedded(embedded, corpus.rows("auxiliary", "train", "usage") - computed, computed)


def _tell(parts: Sequence[Part], computed: int) -> None:
    reused = sum(part.rows for part in parts) - computed
    log.info("embed: %s rows reused, %s to compute", f"{reused:,}", f"{computed:,}")


def vectors_fingerprints(config: Embedding, parts: Sequence[Part]) -> list[str]:
    encoder = _encoder_identity(config)
    return [
        artifacts.fingerprint(stage=STAGE, version=VERSION, encoder=encoder, content=part.content)
        for part in parts
    ]


def _encoder_identity(config: Embedding) -> dict[str, str]:
    """What the raw vectors depend on; the space is applied later and is not part of it."""
    return {
        "model": model_identity(config.model),
        "text": config.text,
        "prefix": config.prefix,
    }


def _embed_missing(config: Embedding, work: Sequence[_Work]) -> Iterator[Artifact]:
    if not work:
        return
    on = cluster()
    device = encoder_device(config.model, on.gpus > 0)
    progress = Progress("embed", sum(item.part.rows for item in work), "rows")
    done = 0
    for vectors in map_parts_on_actors(
        work,
        partial(_embedder, for_workers(config), device),
        actors=encoder_actors(config, on, device),
        cpus=config.threads,
        gpus=1 if device == "cuda" else 0,
        # The bundled engine reads its thread count once, when its OpenMP runtime loads.
        environment={"OMP_NUM_THREADS": str(config.threads)},
    ):
        yield vectors
        done += vectors.summary["rows"]
        progress.at(done)


def _embedder(config: Embedding, device: Device) -> Callable[[_Work], Artifact]:
    encoder = load_encoder(config, device)

    def work(item: _Work) -> Artifact:
        table = item.storage.read_table(item.part.path, columns=["id", "prompt", "response"])
        vectors = encoder.encode(_texts(config, table))
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            row = table["id"][int(bad[0])].as_py()
            raise UserError(
                f"embedding.model: {config.model} gave a vector that is not finite for row {row}"
            )
        draft = artifacts.begin(item.storage, STAGE, item.fingerprint)
        buffer = io.BytesIO()
        np.save(buffer, vectors.astype(np.float16))
        draft.write_bytes(VECTORS, buffer.getvalue())
        return draft.commit({"rows": len(vectors), "dimension": encoder.dimension})

    return work


def _texts(config: Embedding, table: pa.Table) -> list[str]:
    prompts: list[str] = table["prompt"].to_pylist()
    if config.text == "prompt":
        return prompts
    responses = table["response"].to_pylist()
    return [f"{p}\n{r or ''}".rstrip() for p, r in zip(prompts, responses, strict=True)]
