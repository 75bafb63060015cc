"""An exact active-set solver for one target: slow per step, but it does not creep.

Coordinate descent needs very many sweeps where columns nearly depend on each other: subsets of a fixed
size make the Gram matrix singular. From its last point this solver goes to the optimum in few steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_RCOND = 1e-11


def finish(
    gram: NDArray[Any],
    q: NDArray[np.float64],
    w: NDArray[np.float64],
    lam: float,
    l1_ratio: float,
    penalty: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Minimise ``½ wᵀGw - qᵀw + λ Σ p_j (ρ |w_j| + (1 - ρ)/2 w_j²)`` from the point `w`, all of shape (n,).

    Feature-sign search (Lee, Battle, Raina & Ng 2006): solve for the active weights with their signs
    held; stop at the first that would cross 0 and drop it; when none does, take in the feature that
    violates its bound most. In directions in which the quadratic is flat, go until a weight reaches 0.
    """
    w = w.copy()
    signs = np.sign(w)
    factors = np.ones_like(w) if penalty is None else penalty
    threshold, ridge = lam * l1_ratio * factors, lam * (1 - l1_ratio) * factors
    for _ in range(20 * len(w)):
        active = np.flatnonzero(signs)
        if len(active):
            dropped = _step(gram, q, w, signs, active, threshold, ridge)
            if dropped:
                continue
        correlation = q - gram @ w - ridge * w
        excess = np.where(signs == 0, np.abs(correlation) - threshold, 0.0)
        worst = int(excess.argmax())
        if excess[worst] <= 1e-12 * lam * l1_ratio:
            break
        signs[worst] = np.sign(correlation[worst])
    return w


def _step(
    gram: NDArray[Any],
    q: NDArray[np.float64],
    w: NDArray[np.float64],
    signs: NDArray[np.float64],
    active: NDArray[np.int64],
    threshold: NDArray[np.float64],
    ridge: NDArray[np.float64],
) -> bool:
    """Move the active weights towards their solution, in place; whether one of them was dropped."""
    system = gram[np.ix_(active, active)].astype(np.float64)
    system[np.diag_indices_from(system)] += ridge[active]
    wanted = q[active] - threshold[active] * signs[active]
    goal = np.linalg.lstsq(system, wanted, rcond=_RCOND)[0]
    flat = wanted - system @ goal
    downhill = np.abs(flat).max() > 1e-9 * threshold.max()
    direction = flat if downhill else goal - w[active]
    leaving = (direction * signs[active] < 0) & (threshold[active] > 0)
    room = np.full(len(active), np.inf)
    room[leaving] = -w[active][leaving] / direction[leaving]
    first = int(room.argmin())
    share = room[first] if downhill else min(room[first], 1.0)
    if not np.isfinite(share):
        return False
    w[active] += share * direction
    if share == room[first] and (downhill or share < 1.0):
        w[active[first]] = signs[active[first]] = 0.0
        return True
    return False
