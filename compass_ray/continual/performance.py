"""The second signal: how well the current adapter predicts the answers that are in the log.

Usage may stay in its clusters while what is asked of them changes; then the loss rises. The first
windows with answers after a version became current are its reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_ray.continual.runfolder import RunFolder

RESAMPLES = 2999


@dataclass(frozen=True)
class LossReport:
    """Mean losses, nats a target token; ``worse`` if the window's exceeds ``threshold``."""

    answers: int
    mean: float
    reference: float
    threshold: float
    worse: bool


def compare_losses(
    reference_R: ArrayLike, window_N: ArrayLike, alpha: float, seed: int = 0
) -> LossReport:
    """Is the window's mean loss higher than chance makes it? A permutation test, one-sided.

    Args:
        reference_R: loss of each answer of the reference, [R], at least one.
        window_N: loss of each answer of the window, [N], at least one.
        alpha: rate at which a window of unchanged answers is called worse.
        seed: of the random splits.
    """
    reference, window = np.asarray(reference_R, np.float64), np.asarray(window_N, np.float64)
    pooled = np.concatenate([reference, window])
    rng = np.random.default_rng(seed)
    means_M = np.array([rng.permutation(pooled)[: len(window)].mean() for _ in range(RESAMPLES)])
    most = int(alpha * (RESAMPLES + 1) + 1e-9)
    threshold = float(np.sort(means_M)[-most]) if most else float("inf")
    mean = float(window.mean())
    # Means of the same losses in another order differ by rounding.
    worse = mean > threshold + 1e-12 * abs(threshold)
    return LossReport(len(window), mean, float(reference.mean()), threshold, worse)


class LossMeter:
    """Losses of answers under each language's current adapter; loads the base model once."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._training = run.config.training
        self._peft: Any = None

    def losses(
        self, prompts: Sequence[str], responses: Sequence[str], language: str
    ) -> NDArray[np.float64]:
        """Mean loss of each answer, [N], without those that ``training.max_length`` cuts away."""
        import torch

        from compass_ray.training.data import collate, tokenise
        from compass_ray.training.losses import forward_loss

        settings = self._training
        examples = tokenise(
            prompts, responses, self._tokenizer, settings.max_length, settings.system_prompt
        ).examples
        model = self._model(language)
        pad = int(self._tokenizer.pad_token_id or 0)
        found = []
        with torch.no_grad():
            for example in examples:
                total = forward_loss(model, collate([example], [(0,)], pad))
                found.append(float(total) / example.targets)
        return np.array(found, dtype=np.float64)

    @cached_property
    def _tokenizer(self) -> Any:
        from compass_ray.models import load_tokenizer

        return load_tokenizer(self._training.model)

    @cached_property
    def _base(self) -> Any:
        from compass_ray.training.quantisation import load_trained_on

        return load_trained_on(self._training)

    def _model(self, language: str) -> Any:
        from peft import PeftModel

        version = self._run.current(language)
        name = f"{language}-{version.name}"
        if self._peft is None or name not in self._peft.peft_config:
            with self._run.storage.as_local_dir(version.folder) as folder:
                if self._peft is None:
                    self._peft = PeftModel.from_pretrained(self._base, folder, adapter_name=name)
                else:
                    self._peft.load_adapter(folder, adapter_name=name)
        self._peft.set_adapter(name)
        return self._peft.eval()
