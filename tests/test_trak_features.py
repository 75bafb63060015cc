"""TRAK's features on disk: ranges of rows make the same files, a killed run goes on, and those of something else are refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels.errors import CorruptStoreError, NewerFormatError, RequestError
from datamodels.trak import TRAK
from tests.kill_trak import SIZE, problem
from tests.trak_models import small

ROOT = Path(__file__).parent.parent


def content(folder: Path) -> dict[str, bytes]:
    """Files by name, without those that a killed process had not given their name yet."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}


def test_disjoint_ranges_make_the_same_files(tmp_path: Path) -> None:
    model, batches, states = small()
    whole, shared = (TRAK(model, dim=16, out=tmp_path / name) for name in ("whole", "shared"))
    whole.featurize(batches, states)
    shared.featurize(batches, states, rows=(17, 30))
    with pytest.raises(RequestError, match="features of 13 of 30 train examples"):
        shared.score(batches)
    TRAK(model, dim=16, out=tmp_path / "shared").featurize(batches, states, rows=(0, 17))
    assert content(tmp_path / "shared") == content(tmp_path / "whole")
    np.testing.assert_array_equal(shared.score(batches).weights, whole.score(batches).weights)
    with pytest.raises(RequestError, match=r"within 0\.\.30"):
        shared.featurize(batches, states, rows=(5, 31))


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, states = small()
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states[:1])
    monkeypatch.setattr(TRAK, "_project", lambda *_: pytest.fail("computed again"))
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states[:1])


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    model, batches, states = problem()
    whole = TRAK(model, dim=16, out=tmp_path / "whole")
    whole.featurize(batches, states)
    done = tmp_path / "killed" / "checkpoint_000" / "done.npy"
    counts = []
    for rows in (8, 24):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_trak", str(tmp_path / "killed")],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (done.exists() and np.load(done).sum() >= rows):
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()  # type: ignore[union-attr]
        flags = np.load(done).astype(bool)
        exact = np.load(tmp_path / "whole" / "checkpoint_000" / "features.npy")
        np.testing.assert_array_equal(np.load(done.with_name("features.npy"))[flags], exact[flags])
        counts.append(int(flags.sum()))
    assert 8 <= counts[0] < counts[1] < SIZE
    resumed = TRAK(model, dim=16, out=tmp_path / "killed")
    resumed.featurize(batches, states)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_features_of_something_else_are_refused(tmp_path: Path) -> None:
    model, batches, states = small()
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states)
    for options, given, checkpoints, message in (
        ({"dim": 32}, batches, states, "of dim 16, and asked for is 32"),
        ({"dim": 16, "seed": 1}, batches, states, "of seed 0, and asked for is 1"),
        ({"dim": 16, "projection": "rademacher"}, batches, states, "of projection 'sjlt'"),
        ({"dim": 16, "params": "4.*"}, batches, states, "of coordinates 69"),
        ({"dim": 16, "task": "regression"}, batches, states, "of task 'image_classification'"),
        ({"dim": 16}, batches[:2], states, "of n 30, and asked for is 14"),
        ({"dim": 16}, batches, states[::-1], "of checkpoint .*choose another folder with out="),
    ):
        with pytest.raises(RequestError, match=message):
            TRAK(model, out=tmp_path, **options).featurize(given, checkpoints)  # type: ignore[arg-type]
    manifest = tmp_path / "checkpoint_000" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(NewerFormatError, match="99"):
        TRAK(model, dim=16, out=tmp_path).featurize(batches, states)
    manifest.write_text("{")
    with pytest.raises(CorruptStoreError, match="no manifest"):
        TRAK(model, dim=16, out=tmp_path).featurize(batches, states)
