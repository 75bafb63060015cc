"""Columns of what was computed: of outputs, fits and sums of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from datamodels.explorer import measures
from datamodels.explorer.columns import Column, number
from datamodels.explorer.content import Shown

OF_FIT = {
    "lam": ("penalty", "penalty that was chosen"),
    "val_r2": ("R² on held-out models", "of the chosen penalty"),
    "gap": ("duality gap", "relative duality gap of the fit"),
    "slope": ("slope of the calibration", "output units per unit of the scores"),
    "effect_sd": ("effect that is missed", "what the scores miss, per example, in output units"),
    "noise_sd": ("sd between runs", "standard deviation of the output between runs of one subset"),
}


def target_facts(attributions: Sequence[Shown], outputs: Mapping[str, Any] | None, key: str) -> list[Column]:
    """Columns of targets: outputs of the models (under a key of a store), fits and their LDS."""
    out: list[Column] = []
    if outputs is not None:
        unseen = attributions[0].file.train_columns is not None
        models = "the models that did not see it" if unseen else "the models"
        out.append(number("mean output", outputs["mean"], f"mean over {models}"))
        out.append(number("sd of output", outputs["sd"], f"standard deviation over {models}"))
        if "margin" in key:
            text = f"share of {models} that predict its label, those with a positive margin"
            out.append(number("prediction", outputs["positive"], text))
    for shown in attributions:
        if shown.lds is not None:
            text = "rank correlation of predicted and true outputs over unseen models"
            out.append(number(f"LDS, {shown.name}", shown.lds["per_target"], text))
        for key, (name, text) in OF_FIT.items():
            values = shown.file.target_facts.get(key)
            if values is not None and values.ndim == 1:
                out.append(number(f"{name}, {shown.name}", values, text))
        out.append(number(f"nonzero weights, {shown.name}", shown.sums["n_nonzero"], "training examples with a weight"))
    return out


def train_facts(attributions: Sequence[Shown]) -> list[Column]:
    """Columns of training examples: what they do to the targets."""
    out: list[Column] = []
    for shown in attributions:
        sums, t = shown.sums, shown.file.n_targets
        out += [
            number(
                f"mislabel score, {shown.name}",
                measures.mislabel(sums, t, shown.file.train_facts),
                "larger is more suspicious: its influence on itself where that is known, else minus its mean weight on other targets",
            ),
            number(f"helps, {shown.name}", sums["positive"], "sum of its positive weights"),
            number(f"harms, {shown.name}", sums["negative"], "sum of its negative weights"),
            number(f"targets, {shown.name}", sums["n_targets"], "targets on which it has a weight"),
        ]
        if sums["own"].any():
            own = np.divide(sums["own"], sums["n_own"], out=np.full(len(sums["own"]), np.nan), where=sums["n_own"] > 0)
            out.append(number(f"self-influence, {shown.name}", own, "its weight on its own output"))
    return out
