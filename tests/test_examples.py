"""The image experiments at their quick sizes, and the pages of larger and more colourful ones."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from datamodels import Attribution, Store, datasets
from datamodels.datasets import Dataset, Split, load
from datamodels.errors import RequestError
from datamodels.experiment import Fit, Part, fill, run_experiment
from datamodels.regression.estimators import Ridge
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe
from tests.conftest import EXAMPLES, few, script
from tests.explorer_runs import data_in

# -- the scripts --------------------------------------------------------------------------------------


@few
@script("subclasses")
def test_hidden_digits_are_found_and_more_models_go_on_with_the_first(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--jobs", "1", "--out", str(tmp_path / "run")]
    first = example.main([*options, "--models", "48"])
    rows = np.array(Store.open(tmp_path / "run/tenth").array("margins"))
    second = example.main(options)
    assert (first["trained"], second["trained"]) == (48, 48)
    np.testing.assert_array_equal(Store.open(tmp_path / "run/tenth").array("margins")[: len(rows)], rows)
    groups = second["subgroups"]
    assert groups["nmi"] > groups["nmi_baseline"] > 0.3
    assert groups["ari"] > 0.25
    assert f"datamodels against the digit: NMI {groups['nmi']:.3f}" in capsys.readouterr().out
    assert example.main(options)["trained"] == 0
    with pytest.raises(RequestError):
        example.main([*options, "--models", "48"])


@few
@script("similar_images")
def test_similar_images_are_drawn_and_pairs_listed(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    result = example.main(["--quick", "--jobs", "1", "--out", str(out)])
    data, attribution = load("mnist_5k[600,200]"), Attribution.load(out / "lasso.h5ad")
    with (out / "leaks.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(result["leaks"]) == 20
    for row in table:
        train, target = int(row["train"]), int(row["target"])
        assert float(row["weight"]) == pytest.approx(float(attribution.weights[train, target]))
        assert row["train_class"] == data.class_names[data.train.y[train]]
        assert row["exact"] == "False"
    assert np.mean([row["train_class"] == row["target_class"] for row in table]) > 0.7
    with Image.open(out / "similar.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[0] > 1000
    red, _, blue = np.moveaxis(pixels, 2, 0)
    assert min(((blue - red) > 100).sum(), ((red - blue) > 100).sum()) > 1000  # frames of either kind
    assert str(out / "similar.png") in capsys.readouterr().out


@few
@script("alpha_sweep")
def test_every_alpha_costs_the_same(example: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rows = example.main(["--quick", "--jobs", "1", "--out", str(out)])
    assert [row["alpha"] for row in rows] == [0.1, 0.5]
    costs = [row["models"] * row["seen"] for row in rows]
    assert costs[0] == pytest.approx(costs[1], rel=0.01)
    for row in rows:
        stores = [Store.open(out / f"alpha_{row['alpha']}{part}") for part in ("", "_test")]
        assert sum(store.n_models for store in stores) == row["models"]
        assert row["accuracy"] == pytest.approx((stores[0].array("margins")[:] > 0).mean())
        assert row["lds_low"] < row["lds"] < row["lds_high"]
        assert 0 < row["nmi"] < 1
    assert rows[1]["accuracy"] > rows[0]["accuracy"]
    assert 0 <= rows[0]["overlap"] < 1
    assert rows[1]["overlap"] is None
    assert json.loads((out / "alpha_sweep.json").read_text()) == rows
    lines = (out / "alpha_sweep.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    with Image.open(out / "alpha_sweep.png") as picture:
        assert picture.size == (1350, 900)


@pytest.mark.parametrize("example", ["subclasses", "similar_images"], indirect=True)
def test_data_that_is_not_there_ends_a_script_with_advice(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATAMODELS_DATA", str(tmp_path))
    datasets.load.cache_clear()
    with pytest.raises(SystemExit) as ended:
        example.run(lambda: example.main(["--data", "cifar10", "--out", str(tmp_path / "run")]))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cifar10 is not there: looked for data_batch_1")
    assert not (tmp_path / "run").exists()


@script("subclasses")
def test_too_few_models_are_refused(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--quick", "--models", "10"])
    assert "--models is 10; give 48 or more" in capsys.readouterr().err


def test_every_script_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert {path.name for path in EXAMPLES.glob("*.py")} - {"common.py"} == set(
        re.findall(r"^\| `(\w+\.py)`", text, re.M)
    )


def test_models_of_another_recipe_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    first, other = (TrainRecipe(Recipe(hidden=(4,), epochs=1, lr=lr), "digits[60,20]") for lr in (0.1, 0.01))
    fill(tmp_path / "a", Part("a", first, 0.5, 4), jobs=1, progress=False)
    for n_models in (4, 6):
        with pytest.raises(RequestError, match="has models of another recipe or dataset: choose another folder"):
            fill(tmp_path / "a", Part("a", other, 0.5, n_models), jobs=1, progress=False)
    assert Store.open(tmp_path / "a").n_models == 4
    assert fill(tmp_path / "a", Part("a", first, 0.5, 6), jobs=1, progress=False)[1] == 2


# -- their pages ------------------------------------------------------------------------------------------


@few
def test_a_run_on_colour_pictures_names_hidden_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four colours under two labels; the page has colour pictures, and the names of the colours instead of codes."""
    monkeypatch.setattr("datamodels.datasets.registry._LOADERS", {})
    rng = np.random.default_rng(0)
    palette = np.array([[220, 30, 30], [30, 200, 30], [30, 30, 220], [200, 200, 30]])

    def split(k: int) -> Split:
        y = np.arange(k) % 4
        images = np.clip(palette[y][:, None, None] + rng.normal(0, 30, (k, 6, 6, 3)), 0, 255).astype(np.uint8)
        return Split(np.ascontiguousarray(images.transpose(0, 3, 1, 2) / np.float32(255)), y, None, images)

    names = ("red", "green", "blue", "yellow")
    fine = Dataset("paint", split(80), split(40), names)
    coarse = fine.coarse(
        {"warm": ["red", "yellow"], "cold": ["green", "blue"]}, name="paint:warm", hidden_name="colour"
    )
    recipe = Recipe(architecture="linear", epochs=3)
    for data in (fine, coarse):
        datasets.register(data.name, lambda data=data: data)
        task = TrainRecipe(recipe, data)
        parts = [Part("a", task, 0.5, 60), Part("b", task, 0.5, 20, seed=1, replicates=2)]
        out = tmp_path / str(data.hidden_name)
        fits = [Fit("ridge", Ridge(), "a", "b")]
        run_experiment(
            out, title="t", parts=parts, fits=fits, neighbours="ridge", embedding="ridge", jobs=1, progress=False
        )
        shown = data_in((out / "index.html").read_text())
        assert all(shown["sprites"][side][0].startswith("data:image/jpeg;base64,") for side in ("targets", "train"))
        label = next(c for c in shown["meta"]["targets"]["columns"] if c["name"] == shown["meta"]["targets"]["label"])
        assert label["name"] == ("class" if data is fine else "colour")
        assert set(label["categories"]) == set(names)
        assert (shown["groups"]["label"], shown["groups"]["ari"] is None) == (data.hidden_name, data is fine)
