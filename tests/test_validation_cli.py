"""The command `validate`: results before the page, names and features that the recipe knows, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodels import Design, Ridge, Store, TrainRecipe, fit, train
from datamodels.applications.validation import validate
from datamodels.cli import main as cli_main
from datamodels.errors import RequestError
from tests.test_subgroups import one_thread, planted
from tests.validation_data import QUICK, modes

__all__ = ["one_thread"]  # fixtures


def test_the_command_reports_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results come before the page, and are there when it fails."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RequestError("no page")

    monkeypatch.chdir(tmp_path)
    masks, outputs, labels = planted()
    design = Design.explicit(masks)
    store = Store.create("s", schema={"margins": {"shape": (outputs.shape[1],), "dtype": "float32"}}, design=design)
    store.write_rows(list(range(len(masks))), {"margins": list(outputs.astype(np.float32))})
    fit(store, Ridge(), progress=False).save("a.h5ad")
    pd.DataFrame({"batch": labels, "name": [f"t{i}" for i in range(len(labels))]}).to_csv("known.csv", index=False)
    arguments = [
        "validate",
        "a.h5ad",
        "--clusters",
        "3",
        "--columns",
        "known.csv",
        "--by-order",
        "--refits",
        "3",
        "--out",
        "page.html",
    ]
    with pytest.raises(SystemExit) as ended:
        cli_main([*arguments, "--json"])
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_clusters"] == 3
    assert [row["column"] for row in facts["confounders"]["columns"]] == ["batch"]
    assert Path("page.html").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodels.report.validation_page.save_report", broken)
        with pytest.raises(SystemExit) as ended:
            cli_main([*arguments, "--json"])
    assert ended.value.code == 2
    found = capsys.readouterr()
    assert json.loads(found.out) == facts
    assert "no page" in found.err
    for extra, message in (
        (["--column", "donor"], "has no column 'donor'"),
        (["--clusters", "few"], "give a number, or 'stability'"),
        (["--out", "page.txt"], "must end in .html"),
        (["--alpha", "0.5"], "give --recipe and --folder"),
        (["--features", "known.npy"], "x has shape (3, 2); give one row per target, (90, features)"),
    ):
        np.save("known.npy", np.zeros((3, 2)))
        with pytest.raises(SystemExit) as ended:
            cli_main([*arguments, *extra])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_knows_names_and_features_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns in another order than the targets; markers of the dataset's features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datamodels.applications.validation.validate", partial(validate, executor="inline"))
    data, mode = modes(120)
    names, genes = [f"s{i}" for i in range(60)], [f"$G{j}" for j in range(6)]
    table = pd.DataFrame(data.train.x, columns=genes).assign(sample=names, kind=data.train.y.astype(str))
    table.to_csv("samples.csv", index=False)
    Path("recipe.yaml").write_text(
        "dataset: {kind: table, path: samples.csv, label: kind, ids: sample}\nsplits: [train]\n"
        "recipe: {hidden: [8], epochs: 12, lr: 0.1}\n"
    )
    task = TrainRecipe.read("recipe.yaml")
    store = Store.create("s", schema=task.schema, design=Design(n_train=60, alpha=0.5, n_models=200))
    assert train(store, task, **QUICK).ok
    fit(store, Ridge(), outputs_key="train_margins", progress=False).save("a.h5ad")
    order = np.random.default_rng(0).permutation(60)
    known = pd.DataFrame({"mode $x$": [f"m{k}" for k in mode], "name": names}).iloc[order]
    known.to_csv("known.csv", index=False)
    plain = "validate a.h5ad --clusters 4 --components 4 --refits 2 --columns known.csv"
    more = "--recipe recipe.yaml --folder check --shuffles 19 --models 20 --replicates 2 --alpha 0.4 --kind stratified --json"
    with pytest.raises(SystemExit) as ended:
        cli_main(f"{plain} {more} --out page.html".split())
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["confounders"]["columns"]
    assert row["column"] == "mode $x$"
    assert row["effect"] > 0.9
    strongest = {one["feature"] for cluster in facts["markers"]["clusters"] for one in cluster["top"][:1]}
    assert strongest <= {"$G0", "$G1"}
    assert "$G0" in Path("page.html").read_text()
    assert Store.open("check/shuffles").n_models == 20 * 20

    with pytest.raises(SystemExit) as ended:
        cli_main(plain.split())
    assert ended.value.code == 2
    assert "have names, and the attribution does not know those of its targets" in capsys.readouterr().err
