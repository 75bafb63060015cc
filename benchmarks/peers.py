"""Other lasso solvers behind one interface, so that a benchmark compares like with like.

Every solver gets the same standardised columns Z (m, n), the same centred target y, the same grid of λ, and
minimises ``1/(2m) ‖y - Zw‖² + λ ‖w‖₁``. What it returns is judged by one function, `relative_gap_of`, in float64 and
on all features; nobody's own claim of convergence counts.

Stopping rules differ: some solvers stop on a duality gap, others on the size of an update or of a violation. Each
wrapper maps the wanted relative gap to its solver's own tolerance, and `calibrated` then finds the loosest tolerance
that really meets the gap, outside the clock. No peer is slow because it was asked for more than we deliver.

Run with ``python benchmarks/peers.py --quick``. Solvers that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]

EXCESS = 1e-3
"""What proximal SAGA has to reach: (objective - best objective) / best objective."""

_ROWS_AT_ONCE = 4096
_MANY = 1_000_000
# Products of other shapes round differently when the same weights are judged again.
_ROUNDING = 1 + 1e-6
# From a thousand times looser than the nominal tolerance to ten thousand times tighter, two steps per decade.
_FACTORS = tuple(10 ** (k / 2) for k in range(6, -9, -1))


@dataclass(frozen=True, eq=False)
class Data:
    """One target of a standardised problem, with the products that covariance methods start from.

    Attributes
    ----------
    z
        (m, n) float64 standardised columns, in Fortran order.
    y
        (m,) float64 centred outputs.
    gram
        (n, n) ZᵀZ.
    xy
        (n,) Zᵀy.
    """

    z: Floats
    y: Floats
    gram: Floats
    xy: Floats


@dataclass(frozen=True)
class Peer:
    """A solver: ``solve(data, lams, tol)`` returns weights (K, n) for descending lams (K,).

    ``tol`` is the relative gap wanted, nominally: see `calibrated`.
    """

    name: str
    version: str
    solve: Callable[[Data, Floats, float], Floats]


def planted(
    n: int, m: int, t: int, support: int, noise: float, alpha: float, seed: int
) -> tuple[NDArray[np.bool_], NDArray[np.float32], NDArray[np.float32]]:
    """Random masks and outputs that are a sparse linear function of them, plus noise.

    Parameters
    ----------
    n, m, t
        Train examples, models and targets.
    support
        Nonzero weights per target, of normal size.
    noise
        Standard deviation of the noise, as a multiple of the signal's.
    alpha
        Chance of each example to be in each mask.

    Returns
    -------
    masks (m, n) bool, outputs (m, t) float32, weights (n, t) float32 in raw mask units.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((n, t), dtype=np.float32)
    for k in range(t):
        weights[rng.choice(n, support, replace=False), k] = rng.standard_normal(support, dtype=np.float32)
    masks = np.empty((m, n), dtype=np.bool_)
    outputs = np.empty((m, t), dtype=np.float32)
    for start in range(0, m, _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, m))
        masks[rows] = rng.random((rows.stop - start, n), dtype=np.float32) < alpha
        outputs[rows] = masks[rows].astype(np.float32) @ weights
    outputs += noise * outputs.std(axis=0) * rng.standard_normal((m, t), dtype=np.float32)
    return masks, outputs, weights


def standardised(masks: NDArray[np.bool_], outputs: NDArray[np.float32]) -> list[Data]:
    """The problem of every target; Z and its Gram matrix are shared. No column may be constant."""
    wide = masks.astype(np.float64)
    z = np.asfortranarray((wide - wide.mean(axis=0)) / wide.std(axis=0))
    y = outputs - outputs.mean(axis=0, dtype=np.float64)
    gram, xy = np.ascontiguousarray(z.T @ z), z.T @ y
    return [Data(z, y[:, k].copy(), gram, xy[:, k].copy()) for k in range(y.shape[1])]


def grid_of(data: Data, count: int, eps: float) -> Floats:
    """(count,) values from λ_max down to eps times it, geometric."""
    return np.abs(data.xy).max() / len(data.y) * np.geomspace(1.0, eps, count)


def objective_of(z: Floats, y: Floats, w: Floats, lam: float | Floats) -> Floats:
    """``1/(2m) ‖y - Zw‖² + λ ‖w‖₁`` of each column of y (m, c) and w (n, c), from the rows themselves."""
    residual = y - z @ w
    return (residual**2).sum(axis=0) / (2 * len(y)) + lam * np.abs(w).sum(axis=0)


def relative_gap_of(z: Floats, y: Floats, w: Floats, lam: float | Floats) -> Floats:
    """Duality gap over the null objective ``‖y‖²/(2m)``, in float64, on all features, from the rows themselves.

    The dual point is the residual, scaled to its best feasible multiple.

    Parameters
    ----------
    z
        (m, n) standardised columns.
    y
        (m,) centred outputs, or (m, c) with one column per column of w.
    w
        (n,) or (n, c) weights of any precision; they are judged as they are.
    lam
        One λ, or (c,).

    Returns
    -------
    (c,) relative gaps; of one element for w (n,).
    """
    m, w = len(y), np.asarray(w, dtype=np.float64).reshape(z.shape[1], -1)
    y = y.reshape(m, -1)
    residual = y - z @ w
    largest = np.abs(z.T @ residual).max(axis=0) / m
    square, product = (residual**2).sum(axis=0), (residual * y).sum(axis=0)
    bound = np.divide(lam, largest, out=np.full_like(largest, np.inf), where=largest > 0)
    scaling = np.clip(np.divide(product, square, out=np.zeros_like(square), where=square > 0), -bound, bound)
    primal = square / (2 * m) + lam * np.abs(w).sum(axis=0)
    dual = (2 * scaling * product - scaling**2 * square) / (2 * m)
    return (primal - dual) / ((y**2).sum(axis=0) / (2 * m))


def worst_gap(data: Data, lams: Floats, weights: Floats) -> float:
    """The largest relative gap along a path of weights (K, n)."""
    return float(relative_gap_of(data.z, data.y, weights.T, lams).max())


def solve_scikit_learn(data: Data, lams: Floats, tol: float) -> Floats:
    """`lasso_path` on the Gram matrix.

    It stops when the gap of ``‖y - Zw‖²/2 + mλ‖w‖₁`` is at most ``tol ‖y‖²``: twice our relative gap.
    """
    from sklearn.linear_model import lasso_path

    # The inputs are as they should be: checks and a copy of Z for every target would be no part of the solver.
    _, weights, _ = lasso_path(
        data.z, data.y, alphas=lams, precompute=data.gram, Xy=data.xy, tol=tol / 2, max_iter=_MANY, copy_X=False,
        check_input=False,
    )  # fmt: skip
    return weights.T


def solve_celer(data: Data, lams: Floats, tol: float) -> Floats:
    """Working sets and dual extrapolation. It stops at a gap of ``tol ‖y‖²/m``: twice our relative gap."""
    from celer import celer_path

    _, weights, _ = celer_path(data.z, data.y, pb="lasso", alphas=lams, tol=tol / 2, max_iter=100)
    return weights.T


def solve_skglm(data: Data, lams: Floats, tol: float) -> Floats:
    """Working sets and Anderson acceleration, warm-started from λ to λ.

    It stops on the largest violation of the optimality conditions. A violation v makes the residual, scaled by
    1/(1 + v/λ), a feasible dual point, so that the relative gap is at most about 2v/λ.
    """
    from skglm.datafits import Quadratic
    from skglm.penalties import L1
    from skglm.solvers import AndersonCD

    # It compiles both by itself, and keeps the compiled classes.
    datafit, penalty = Quadratic(), L1(float(lams[0]))
    solver = AndersonCD(max_iter=1000, fit_intercept=False)
    w, fitted = np.zeros(data.z.shape[1]), np.zeros(len(data.y))
    weights = np.empty((len(lams), len(w)))
    for k, lam in enumerate(lams):
        penalty.alpha, solver.tol = lam, tol * lam / 2
        w, _, _ = solver.solve(data.z, data.y, datafit, penalty, w, fitted)
        weights[k] = w
    return weights


def solve_adelie_covariance(data: Data, lams: Floats, tol: float) -> Floats:
    """Pathwise coordinate descent on the Gram matrix.

    It stops when squared updates, in units of the objective, are small; the gap shrinks like the updates themselves.
    """
    import adelie

    # The objective times m, so that the Gram matrix is taken as it is; transposed, since it wants Fortran order.
    state = adelie.solver.gaussian_cov(
        A=adelie.matrix.dense(data.gram.T, method="cov"), v=data.xy, lmda_path=lams * len(data.y), early_exit=False,
        tol=tol**2 * float(data.y @ data.y), progress_bar=False, max_iters=_MANY,
    )  # fmt: skip
    return state.betas.toarray()


def solve_adelie_naive(data: Data, lams: Floats, tol: float) -> Floats:
    """Pathwise coordinate descent on the residual. It stops as `solve_adelie_covariance` does."""
    import adelie

    state = adelie.solver.grpnet(
        adelie.matrix.dense(data.z, method="naive"), adelie.glm.gaussian(data.y), lmda_path=lams, intercept=False,
        early_exit=False, tol=tol**2, progress_bar=False, max_iters=_MANY,
    )  # fmt: skip
    return state.betas.toarray()


def solve_glmnet(data: Data, lams: Floats, tol: float) -> Floats:
    """The Fortran code of R's glmnet, in its covariance mode.

    It takes no Gram matrix but fills in the columns it needs, anew for every target. It stops when no squared
    update exceeds a share of y's variance; the gap shrinks like the updates themselves.
    """
    from glmnet import ElasticNet

    model = ElasticNet(
        lambda_path=lams, standardize=False, fit_intercept=False, n_splits=0, tol=tol**2, max_iter=_MANY
    ).fit(data.z, data.y)
    return model.coef_path_.T


_KNOWN = (
    ("scikit-learn", "sklearn", "scikit-learn", solve_scikit_learn),
    ("celer", "celer", "celer", solve_celer),
    ("skglm", "skglm", "skglm", solve_skglm),
    ("adelie, covariance", "adelie", "adelie", solve_adelie_covariance),
    ("adelie, naive", "adelie", "adelie", solve_adelie_naive),
    ("glmnet", "glmnet", "python-glmnet", solve_glmnet),
)


def available() -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be imported, by name, and why the others cannot."""
    peers, missing = {}, {}
    for name, module, distribution, solve in _KNOWN:
        try:
            importlib.import_module(module)
        except ImportError as error:
            missing[name] = str(error)
        else:
            peers[name] = Peer(name, importlib.metadata.version(distribution), solve)
    return peers, missing


Reached = Callable[[Floats, NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""(weights (n, a), targets (a,), positions on the grid (a,)) -> which of them are good enough, (a,)."""


def by_excess(problem: Sequence[Data], lams: Floats, best: Floats, tol: float = EXCESS) -> Reached:
    """Good enough: an objective at most ``1 + tol`` times the best one, which is known, (t, K)."""
    z, y = problem[0].z, np.stack([data.y for data in problem], axis=1)

    def reached(w: Floats, targets: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.bool_]:
        return objective_of(z, y[:, targets], w, lams[targets, at]) <= (1 + tol) * best[targets, at]

    return reached


def by_gap(problem: Sequence[Data], lams: Floats, tol: float) -> Reached:
    """Good enough: a relative gap of at most ``tol``. SAGA, in float32, reaches 1e-5 but not 1e-6."""
    z, y = problem[0].z, np.stack([data.y for data in problem], axis=1)

    def reached(w: Floats, targets: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.bool_]:
        return relative_gap_of(z, y[:, targets], w, lams[targets, at]) <= tol

    return reached


def calibrated(peer: Peer, problem: Sequence[Data], lams: Floats, reached: Reached, tol: float) -> float:
    """The loosest nominal tolerance with which a peer is good enough at every target and λ.

    Parameters
    ----------
    lams
        (t, K) the grid of every target, descending.
    reached
        What is good enough: `by_gap` or `by_excess`.
    tol
        Where to look: from a thousand times this to a ten-thousandth of it.

    Returns
    -------
    The tolerance to call ``peer.solve`` with.

    Raises
    ------
    AssertionError
        No tolerance is good enough.
    """

    def good(k: int, nominal: float) -> bool:
        weights = peer.solve(problem[k], lams[k], nominal)
        return bool(reached(weights.T, np.full(len(weights), k), np.arange(len(weights))).all())

    with warnings.catch_warnings():
        # Loose tolerances may warn; what they reach is measured here.
        warnings.simplefilter("ignore")
        for factor in _FACTORS:
            if all(good(k, tol * factor) for k in range(len(problem))):
                return tol * factor
    raise AssertionError(
        f"{peer.name} {peer.version} is not good enough at any tolerance down to {tol * _FACTORS[-1]:.0e}"
    )


def seconds_per_target(peer: Peer, problem: Sequence[Data], lams: Floats, tol: float, repeats: int) -> float:
    """Median seconds of the whole path, per target, with a tolerance from `calibrated` (which has warmed it up)."""
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        for data, grid in zip(problem, lams, strict=True):
            peer.solve(data, grid, tol)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) / len(problem)


@dataclass(eq=False)
class _Columns:
    """What SAGA keeps of the a targets that are not finished: every array has one column for each."""

    targets: torch.Tensor
    at: torch.Tensor
    y: torch.Tensor
    w: torch.Tensor
    table: torch.Tensor
    average: torch.Tensor

    def kept(self, keep: torch.Tensor) -> _Columns:
        return _Columns(
            self.targets[keep], self.at[keep], *(a[:, keep] for a in (self.y, self.w, self.table, self.average))
        )


@dataclass(frozen=True, eq=False)
class SagaRun:
    """Weights (t, K, n) float32, seconds of the epochs for all targets together, and their number."""

    weights: NDArray[np.float32]
    seconds: float
    epochs: int


def saga_path(
    problem: Sequence[Data],
    lams: Floats,
    reached: Reached,
    *,
    batch: int | None = None,
    seed: int = 0,
    max_epochs: int = 20_000,
) -> SagaRun:
    """Proximal SAGA over minibatches of masks, the algorithm of the original library, on a CPU in float32.

    All targets are columns of one weight matrix; each walks its own path with warm starts, and leaves when it is
    through. Every choice is in favour of speed: minibatches are fixed blocks of rows (no gathering) in random order,
    the table starts with the residuals of w = 0, and only epochs are on the clock: neither the preparation nor the
    test for the end, which may know the answer.

    The step is 1/L for L the largest smoothness constant of a block's loss. Proofs want a third of that
    (Defazio, Bach & Lacoste-Julien 2014); on random masks the whole step converged in every shape tried, up to three
    times faster. Half as many rows as features was the best size of a block, or close to it.

    Parameters
    ----------
    lams
        (t, K) descending.
    reached
        When a target moves on to its next λ, asked once per epoch: `by_excess` or `by_gap`.
    batch
        Rows of a minibatch, half the features unless told.

    Raises
    ------
    AssertionError
        Some target is not through after ``max_epochs``.
    """
    z = torch.from_numpy(problem[0].z.astype(np.float32, order="C"))
    y = torch.from_numpy(np.stack([data.y for data in problem], axis=1).astype(np.float32))
    xy = torch.from_numpy(np.stack([data.xy for data in problem], axis=1).astype(np.float32))
    grid = torch.from_numpy(lams.astype(np.float32))
    blocks, step = _blocks(z, batch or max(64, z.shape[1] // 2))
    t, order, seconds = len(problem), np.random.default_rng(seed), 0.0
    columns = _Columns(torch.arange(t), torch.zeros(t, dtype=torch.long), y, torch.zeros_like(xy), -y, -xy / len(y))
    weights = np.zeros((*lams.shape, z.shape[1]), dtype=np.float32)
    for epoch in range(1, max_epochs + 1):
        started = time.perf_counter()
        _epoch(z, columns, [blocks[b] for b in order.permutation(len(blocks))], step, grid[columns.targets, columns.at])
        seconds += time.perf_counter() - started
        targets, at = columns.targets.numpy(), columns.at.numpy()
        done = reached(columns.w.numpy().astype(np.float64), targets, at)
        weights[targets[done], at[done]] = columns.w.numpy().T[done]
        columns.at = columns.at + torch.from_numpy(done)
        if (left := columns.at < lams.shape[1]).sum() < len(left):
            columns = columns.kept(left)
        if not left.any():
            return SagaRun(weights, seconds, epoch)
    raise AssertionError(f"proximal SAGA has {len(columns.at)} of {t} targets left after {max_epochs} epochs")


def _blocks(z: torch.Tensor, batch: int) -> tuple[list[slice], float]:
    """Nearly equal blocks of rows, and the step: 1 / the largest eigenvalue of a block's Hessian."""
    count = max(1, round(len(z) / batch))
    edges = np.linspace(0, len(z), count + 1).round().astype(int).tolist()
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    # The loss of block b is count/(2m) ‖y_b - Z_b w‖², so that the mean over blocks is the whole.
    largest = max(float(torch.linalg.matrix_norm(z[rows], ord=2)) ** 2 for rows in blocks)
    return blocks, len(z) / (count * largest)


def _epoch(z: torch.Tensor, columns: _Columns, blocks: list[slice], step: float, lam: torch.Tensor) -> None:
    """One proximal SAGA step per block, in place. The gradient table is one number per row and target, its residual."""
    m, w, average, table = len(z), columns.w, columns.average, columns.table
    threshold, change, clipped = step * lam, torch.empty_like(w), torch.empty_like(w)
    for rows in blocks:
        residual = torch.addmm(columns.y[rows], z[rows], w, beta=-1)
        torch.mm(z[rows].T, residual - table[rows], out=change)
        table[rows] = residual
        w.add_(average, alpha=-step).add_(change, alpha=-step * len(blocks) / m)
        average.add_(change, alpha=1 / m)
        w.sub_(torch.clamp(w, -threshold, threshold, out=clipped))


def best_objectives(problem: Sequence[Data], lams: Floats) -> Floats:
    """(t, K) the least objectives, to a relative gap of 1e-8."""
    best = np.empty(lams.shape)
    for k, (data, grid) in enumerate(zip(problem, lams, strict=True)):
        weights = solve_scikit_learn(data, grid, 1e-9)
        assert worst_gap(data, grid, weights) <= 1e-8
        best[k] = objective_of(data.z, data.y[:, None], weights.T, grid)
    return best


def worst_gaps(problem: Sequence[Data], lams: Floats, weights: Sequence[Floats]) -> float:
    """The largest relative gap over all targets."""
    return max(worst_gap(*of) for of in zip(problem, lams, weights, strict=True))


def compare_paths(peers: dict[str, Peer], problem: Sequence[Data], lams: Floats, tol: float, repeats: int) -> None:
    """Print the seconds of every peer at the same gap."""
    print("| solver | version | seconds per target | worst relative gap | nominal / wanted gap |")
    print("|---|---|---|---|---|")
    for peer in peers.values():
        nominal = calibrated(peer, problem, lams, by_gap(problem, lams, tol), tol)
        taken = seconds_per_target(peer, problem, lams, nominal, repeats)
        gap = worst_gaps(problem, lams, [peer.solve(*of, nominal) for of in zip(problem, lams, strict=True)])
        assert gap <= tol * _ROUNDING, (peer.name, gap)
        print(f"| {peer.name} | {peer.version} | {taken:.5f} | {gap:.1e} | {nominal / tol:.1g} |", flush=True)


def compare_saga(reference: Peer, problem: Sequence[Data], lams: Floats, repeats: int) -> None:
    """Print the seconds of proximal SAGA at one λ and over the path, and of a peer that stops by the same rule."""
    one = lams[:, [0]] / 10
    near_one, near_path = (partial(by_excess, best=best_objectives(problem, grid)) for grid in (one, lams))
    cases = (
        (f"λ_max/10, objective within {EXCESS:.0e}", one, near_one, EXCESS),
        (f"path, objective within {EXCESS:.0e}", lams, near_path, EXCESS),
        ("path, relative gap 1e-4", lams, by_gap, 1e-4),
    )
    print(
        f"\n| proximal SAGA, {len(problem)} targets at once | seconds per target | epochs | worst relative gap |",
        end="",
    )
    print(f" {reference.name}, same rule |\n|---|---|---|---|---|")
    for name, grid, rule, tol in cases:
        reached = rule(problem, grid, tol=tol)
        runs = [saga_path(problem, grid, reached) for _ in range(repeats + 1)][1:]
        weights, taken = runs[0].weights, statistics.median(run.seconds for run in runs) / len(problem)
        check = rule(problem, grid, tol=tol * _ROUNDING)
        steps = np.arange(grid.shape[1])
        assert all(check(w.T, np.full_like(steps, k), steps).all() for k, w in enumerate(weights)), name
        nominal = calibrated(reference, problem, grid, reached, tol)
        other = seconds_per_target(reference, problem, grid, nominal, repeats)
        gap = worst_gaps(problem, grid, weights)
        print(f"| {name} | {taken:.5f} | {runs[0].epochs} | {gap:.1e} | {other:.5f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small problem")
    parser.add_argument("--tol", type=float, default=1e-6, help="relative gap that every peer has to meet")
    arguments = parser.parse_args()
    n, m, count, repeats = (300, 1500, 30, 3) if arguments.quick else (1300, 3500, 50, 5)
    peers, missing = available()
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    numba.set_num_threads(1)
    torch.set_num_threads(1)
    # After all imports: only libraries that are loaded can be limited.
    with threadpool_limits(limits=1):
        masks, outputs, _ = planted(n, m, 32, support=n // 10, noise=1.0, alpha=0.5, seed=0)
        problem = standardised(masks, outputs)
        lams = np.stack([grid_of(data, count, 1e-2) for data in problem])
        print(f"\nn {n:,}, m {m:,}, {count} λ down to λ_max/100, relative gap {arguments.tol:.0e}, one core.")
        started = time.perf_counter()
        _ = problem[0].z.T @ problem[0].z
        print(f"ZᵀZ, which all targets share, is not on the clock: {time.perf_counter() - started:.4f} s once.\n")
        compare_paths(peers, problem[:4], lams[:4], arguments.tol, repeats)
        compare_saga(peers["scikit-learn"], problem, lams, repeats)


if __name__ == "__main__":
    main()
