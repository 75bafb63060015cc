"""What the explorer keeps: a second opening computes nothing, and what changed is not taken for what was."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import Attribution, datasets
from datamodels.explorer import gather
from datamodels.explorer.cache import Cache
from datamodels.explorer.content import Content
from datamodels.explorer.dataset_facts import identity
from datamodels.run import Run, RunAttribution, View
from tests.explorer_runs import content, folder

__all__ = ["content", "folder"]  # fixtures


def test_a_second_opening_computes_nothing(folder: Path, content: Content, tmp_path: Path) -> None:
    again = gather(folder, progress=False)
    assert again.cache.made == []
    assert again.version == content.version
    assert again.meta() == content.meta()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert gather(copy, progress=False).cache.made == []
    before = {path.name for path in (copy / ".explorer").iterdir()}
    lasso = Attribution.load(copy / "lasso.h5ad")
    replace(lasso, weights=lasso.weights * 2).save(copy / "lasso.h5ad")
    changed = gather(copy, progress=False)
    assert any(name.startswith("sums") for name in changed.cache.made)
    assert not any(name.startswith("outputs") for name in changed.cache.made)
    assert changed.version != content.version
    gone = before - {path.name for path in (copy / ".explorer").iterdir()}
    assert any(name.startswith("sums") for name in gone)


def test_files_of_one_name_and_size_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(50, 20)).astype(np.float32) for name in ("lasso", "trak")}
    for name, values in weights.items():
        (tmp_path / name).mkdir()
        Attribution(values, np.zeros(20)).save(tmp_path / name / "fit.h5ad")
        os.utime(tmp_path / name / "fit.h5ad", (1.7e9, 1.7e9))
    Run(
        title="two", created="2026-01-01T00:00:00+00:00", stores={"s": "s"}, view=View(neighbours="lasso", embedding="lasso"),
        attributions={name: RunAttribution(path=f"{name}/fit.h5ad", store="s") for name in weights},
    ).save(tmp_path)  # fmt: skip
    content = gather(tmp_path, progress=False)
    for name, values in weights.items():
        found = content.whatif(content.attribution(name), [0, 1], add=True)[0]
        np.testing.assert_allclose(found, values[:2].sum(axis=0), atol=1e-5)
    before = content.attribution("trak").file.identity
    Attribution(np.roll(weights["trak"], 1), np.zeros(20)).save(tmp_path / "trak" / "fit.h5ad")
    os.utime(tmp_path / "trak" / "fit.h5ad", (1.7e9, 1.7e9))
    after = gather(tmp_path, progress=False).attribution("trak").file.identity
    assert after[:3] == before[:3]
    assert after != before


def test_a_dataset_changes_with_its_table(tmp_path: Path) -> None:
    (tmp_path / "c.bed").write_bytes(b"x")
    table = tmp_path / "a table.csv"
    table.write_text("iid,y\n1,a\n")
    name = datasets.name_of({"kind": "plink", "path": str(tmp_path / "c"), "label": "y", "table": str(table)})
    before = identity(name)
    assert identity(name) == before
    table.write_text("iid,y\n1,b\n")
    assert identity(name) != before


def test_an_error_of_computing_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls: list[int] = []

    def fails() -> Any:
        calls.append(1)
        raise ValueError("singular")

    for ask_ in (cache.arrays, cache.json):
        with pytest.raises(ValueError, match="singular"):
            ask_("kind", [1], fails)
    assert len(calls) == 2
    cache.json("kind", [1], lambda: 5)
    cache.path("kind", "json", 1).write_text("{")
    assert cache.json("kind", [1], lambda: 6) == 6
    cache.arrays("kind", [1], lambda: {"a": np.ones(2)})
    cache.path("kind", "npz", 1).write_bytes(b"")
    assert cache.arrays("kind", [1], lambda: {"a": np.zeros(2)})["a"].tolist() == [0, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_one_folder_keep_what_is_computed_of_each(tmp_path: Path, shared: bool) -> None:
    how = {"cache": tmp_path / "kept"} if shared else {}
    for name in "ab":
        weights = np.random.default_rng(ord(name)).normal(size=(30, 20))
        Attribution(weights, np.zeros(20)).save(tmp_path / f"{name}.h5ad")
        assert gather(tmp_path / f"{name}.h5ad", progress=False, **how).cache.made
    for name in "ab":
        assert gather(tmp_path / f"{name}.h5ad", progress=False, **how).cache.made == []


def test_the_cache_can_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    Attribution(np.eye(6, 4), np.zeros(4)).save(tmp_path / "a.h5ad")
    gather(tmp_path / "a.h5ad", cache=tmp_path / "kept", progress=False)
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / ".explorer").exists()
