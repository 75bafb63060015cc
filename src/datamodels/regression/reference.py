"""Coordinate descent as one would write it on a board: the oracle of the compiled kernel.

Slow on purpose. It works on the rows themselves, shares no code with the kernel, and is what the
tests compare against.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def elastic_net(
    x: NDArray[np.bool_],
    y: NDArray[np.float64],
    lam: float,
    l1_ratio: float = 1.0,
    *,
    penalty: NDArray[np.float64] | None = None,
    sweeps: int = 10_000,
    tolerance: float = 1e-13,
) -> tuple[NDArray[np.float64], float]:
    """Minimise ``1/(2m) ‖y - b - Zw‖² + λ Σ p_j (ρ|w_j| + (1 - ρ)/2 w_j²)`` over standardised columns Z.

    Parameters
    ----------
    x
        Masks (m, n).
    y
        Outputs of one target (m,).
    penalty
        Penalty factors p (n,), 1 when not given; columns with ∞ are left out.

    Returns
    -------
    weights (n,) in raw mask units, and the bias.
    """
    m, n = x.shape
    mean, scale = x.mean(axis=0), x.std(axis=0)
    p = np.ones(n) if penalty is None else penalty
    used = np.flatnonzero((scale > 0) & np.isfinite(p))
    p = p[used]
    z = (x[:, used] - mean[used]) / scale[used]
    residual = y - y.mean()
    w = np.zeros(len(used))
    for _ in range(sweeps):
        moved = 0.0
        for j in range(len(used)):
            target = z[:, j] @ residual / m + w[j]
            new = np.sign(target) * max(abs(target) - lam * l1_ratio * p[j], 0.0) / (1 + lam * (1 - l1_ratio) * p[j])
            residual -= z[:, j] * (new - w[j])
            moved = max(moved, abs(new - w[j]))
            w[j] = new
        if moved <= tolerance * max(1e-300, float(np.abs(y - y.mean()).max())):
            break
    raw = np.zeros(n)
    raw[used] = w / scale[used]
    return raw, float(y.mean() - mean @ raw)
