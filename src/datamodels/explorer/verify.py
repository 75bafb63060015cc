"""A what-if put to the test: models are retrained with and without the examples, and the actual change is set beside the predicted.

Targets of another split: models of the full training set against models of all but the examples. Targets that are training
examples: models of drawn subsets, as the run's, each once with all of the examples and once with none of them; a target is judged
on those pairs that did not see it, so the examples themselves are not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.explorer.content import Content, Shown
from datamodels.files import replacing
from datamodels.store import Store

_FOLDER = "verify"
_FEWEST_RUNS, _MOST_RUNS = 2, 1000
_CONFIDENCE = 0.95
_SAMPLED = 256  # masks that tell the size of subsets


class Busy(DatamodelsError):
    """Another verification is running."""


class Verifier:
    """Verifications of a content, one at a time. Models go to stores in the cache, so that an interrupted one goes on.

    Parameters
    ----------
    executor, jobs
        As in `datamodels.train`.
    """

    def __init__(self, content: Content, *, executor: str = "local", jobs: int | None = None) -> None:
        self.content, self.executor, self.jobs = content, executor, jobs
        self.folder = content.cache.folder / _FOLDER
        self._lock = threading.Lock()
        self._running: str | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def start(self, attribution: str, examples: Sequence[int], *, add: bool, runs: int) -> str:
        """Start one in the background, unless it is done already; returns its id.

        Raises
        ------
        RequestError
            when the run does not say how models were trained, or the request is wrong.
        Busy
            while another one is running.
        """
        content = self.content
        if content.task is None:
            raise RequestError("this run does not say how its models were trained, so nothing can be retrained")
        shown = content.attribution(attribution)
        content.whatif(shown, examples, add=add)  # checks the examples
        if isinstance(runs, bool) or not isinstance(runs, int) or not _FEWEST_RUNS <= runs <= _MOST_RUNS:
            raise RequestError(f"runs is {runs!r}; give {_FEWEST_RUNS} to {_MOST_RUNS}")
        if not 1 <= len(examples) < content.n_train:
            raise RequestError(f"{len(examples)} examples were given; give 1 to {content.n_train - 1}")
        if self._columns is not None:
            self._pairs(examples, runs)  # checks that there is something to judge
        request = {"attribution": attribution, "examples": sorted(int(i) for i in examples), "add": add, "runs": runs}
        facts = [request, shown.file.identity, content.task.fingerprint, self._columns is not None]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:20]
        with self._lock:
            if self._running == name or self._result(name).is_file():
                return name
            if self._running is not None:
                raise Busy(f"the verification {self._running} is running; one at a time")
            self._write(self.folder / name / "request.json", request)
            (self.folder / name / "failed.json").unlink(missing_ok=True)
            self._running = name
            self._thread = threading.Thread(target=self._work, args=(name, shown, request), daemon=True)
            self._thread.start()
        return name

    def state(self, name: str) -> dict[str, Any]:
        """Of a verification: ``state`` (running, done, failed), ``done`` and ``total`` models, ``message``, ``result``, ``request``.

        Raises
        ------
        RequestError
            when there is none of this id.
        """
        folder = self.folder / name
        if not name.isalnum() or not (folder / "request.json").is_file():
            raise RequestError(f"there is no verification {name!r}")
        with self._lock:
            running = self._running == name
        request = json.loads((folder / "request.json").read_text())
        total = 2 * request["runs"]
        if self._result(name).is_file():
            result = json.loads(self._result(name).read_text())
            return {"state": "done", "done": total, "total": total, "request": request, "result": result}
        done = sum(_completed(store) for store in self._stores(name, request["runs"]))
        out = {"state": "running" if running else "failed", "done": done, "total": total, "request": request}
        if not running:
            failed = folder / "failed.json"
            message = (
                json.loads(failed.read_text()) if failed.is_file() else "it was interrupted; start it again to go on"
            )
            out["message"] = message
        return out

    def close(self) -> None:
        """Ask what is running to end, and wait for it. Complete models are kept."""
        with self._lock:
            name, thread, self._closed = self._running, self._thread, True
        if name is None or thread is None:
            return
        runs = json.loads((self.folder / name / "request.json").read_text())["runs"]
        while thread.is_alive():
            for path in self._stores(name, runs):
                with contextlib.suppress(DatamodelsError):
                    store = Store.open(path)
                    for beat in store.campaigns():
                        if beat.get("running"):
                            store.ask_to_stop(beat["name"], "the explorer was closed")
            thread.join(0.5)

    # -- the work ---------------------------------------------------------------------------------------

    def _stores(self, name: str, runs: int) -> tuple[Path, Path]:
        """Of models with the examples, and of those without. Models on the full training set are shared by all verifications of as
        many runs."""
        facts = [self.content.task.fingerprint, runs, self._key]
        full = self.folder / f"base{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}"
        return full if self._columns is None else self.folder / name / "with", self.folder / name / "models"

    @property
    def _columns(self) -> NDArray[np.int64] | None:
        """Which training examples the targets are."""
        return self.content.attributions[0].file.train_columns

    def _pairs(self, examples: Sequence[int], runs: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Drawn subsets (runs, n_train) with all of the examples, and with none of them."""
        store = self.content.store
        if store is None:
            raise RequestError("the run's store is not at hand, so nobody knows how its subsets are drawn")
        design, n = store.design, self.content.n_train
        if design is None or design.kind in ("explicit", "leave_one_out"):
            design = Design(n_train=n, alpha=float(np.clip(_share(store), 1 / n, 1 - 1 / n)))
        seed = int(hashlib.sha256(f"verify {design.identity}".encode()).hexdigest()[:8], 16)
        less = replace(design, n_models=runs, replicates=1, seed=seed).masks()
        less[:, list(examples)] = False
        more = less.copy()
        more[:, list(examples)] = True
        if not (~more[:, self._columns]).sum(axis=0).max() >= _FEWEST_RUNS:
            raise RequestError(
                f"targets are training examples, judged on {_FEWEST_RUNS} or more subsets without them; of {runs} runs no target has "
                "as many: give more runs, or choose fewer examples"
            )
        if not less.any(axis=1).all():
            raise RequestError("without these examples a drawn subset is empty: choose fewer of them")
        return more, less

    @property
    def _key(self) -> str:
        from datamodels.regression.calibration import output_key

        return output_key(self.content.attributions[0].file.part(0, 1))

    def _result(self, name: str) -> Path:
        return self.folder / name / "result.json"

    def _work(self, name: str, shown: Shown, request: dict[str, Any]) -> None:
        try:
            result = self._retrained(name, shown, request)
            self._write(self._result(name), result)
        except Exception as error:
            self._write(self.folder / name / "failed.json", first_line(error))
        finally:
            with self._lock:
                self._running = None

    def _retrained(self, name: str, shown: Shown, request: dict[str, Any]) -> dict[str, Any]:
        examples, runs, columns = request["examples"], request["runs"], self._columns
        if columns is None:
            more = np.ones((runs, self.content.n_train), dtype=np.bool_)
            less = more.copy()
            less[:, examples] = False
        else:
            more, less = self._pairs(examples, runs)
        stores = self._stores(name, runs)
        full = self._outputs(more, stores[0], 0, shown)
        left = self._outputs(less, stores[1], 1 if columns is None else 0, shown)  # a pair begins alike
        predicted = self.content.whatif(shown, examples, add=request["add"])
        before, after = (left, full) if request["add"] else (full, left)
        found = compare(predicted, after, before, None if columns is None else ~more[:, columns])
        if columns is None:
            return found
        chosen = int(np.isin(columns, examples).sum())
        return {**found, "chosen": chosen, "seen": len(columns) - chosen - len(found["targets"])}

    def _outputs(self, masks: NDArray[np.bool_], folder: Path, seed: int, shown: Shown) -> NDArray[np.float64]:
        """Outputs (runs, n_targets) of models that are trained on masks."""
        from datamodels.evaluation.retraining import retrain

        if self._closed:
            raise RequestError("the explorer was closed; start it again to go on")
        key = self._key
        output = key.removeprefix("train_")
        found = retrain(
            self.content.task, masks, outputs=(output,), folder=folder, split="train" if key != output else "test",
            seed=seed, jobs=self.jobs, executor=self.executor, progress=False,
        )[output]  # fmt: skip
        flat = found.reshape(len(found), -1).astype(np.float64)
        if not _all_complete(folder):
            raise RequestError("it was stopped; start it again to go on")
        return flat[:, shown.file.targets]

    def _write(self, path: Path, value: Any) -> None:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(value))


def compare(
    predicted: NDArray[np.float32],
    after: NDArray[np.float64],
    before: NDArray[np.float64],
    unseen: NDArray[np.bool_] | None = None,
) -> dict[str, Any]:
    """Predicted changes (3, n_targets) and actual ones of runs (r, n_targets), JSON-ready.

    Intervals are Welch's; with `unseen` (r, n_targets) runs are pairs, those of a target alone count that are true, intervals are
    Student's, and targets with less than two pairs are left out. ``agreement``: correlations over targets, a bootstrap interval
    of Spearman's, and the slope of actual on predicted changes. None for fewer than three targets.
    """
    from datamodels.evaluation.counterfactual import Change, Counterfactual
    from datamodels.evaluation.retraining import Estimate

    def actual(target: int) -> Estimate:
        if unseen is None:
            return Estimate.difference(after[:, target], before[:, target], _CONFIDENCE)
        pairs = unseen[:, target]
        return Estimate.mean(after[pairs, target] - before[pairs, target], _CONFIDENCE)

    count = len(before) if unseen is None else unseen.sum(axis=0)
    targets = np.flatnonzero(np.broadcast_to(count, before.shape[1:]) >= _FEWEST_RUNS).tolist()
    unknown = Estimate(np.nan, np.nan, np.nan)
    changes = tuple(
        Change(
            "attribution",
            target,
            0,
            np.nan,
            float(predicted[0, target]),
            actual(target),
            unknown,
            unknown,
        )
        for target in targets
    )
    found = Counterfactual(changes, "remove", "helpful", "", len(before), _CONFIDENCE)
    agreement = found.agreement("attribution")._asdict() if len(changes) >= 3 else None
    return {
        "targets": targets,
        "predicted": [change.predicted for change in changes],
        "predicted_low": [float(v) if np.isfinite(v) else None for v in predicted[1, targets]],
        "predicted_high": [float(v) if np.isfinite(v) else None for v in predicted[2, targets]],
        "actual": [change.actual.value for change in changes],
        "low": [change.actual.low for change in changes],
        "high": [change.actual.high for change in changes],
        "runs": len(before),
        "agreement": None if agreement is None else {k: v if np.isfinite(v) else None for k, v in agreement.items()},
    }


def _share(store: Store) -> float:
    """The mean share of the training set in the first subsets."""
    if store.design is not None:
        return float(store.design.masks(0, min(store.n_models, _SAMPLED)).mean())
    rows = np.flatnonzero(store.completed())[:_SAMPLED]
    return float(store.masks(0, int(rows.max(initial=-1)) + 1)[rows].mean())


def _completed(path: Path) -> int:
    try:
        return int(Store.open(path).completed().sum())
    except DatamodelsError:
        return 0


def _all_complete(path: Path) -> bool:
    return bool(Store.open(path).completed().all())
