"""A run as one page: the same arrays and answers, hostile labels as data, modules as one script, and a size that stays small."""

from __future__ import annotations

import base64
import io
import json
import re
from argparse import Namespace
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from datamodels import Attribution
from datamodels.cli import main
from datamodels.datasets import Split
from datamodels.errors import RequestError
from datamodels.explorer import app, export, gather
from datamodels.explorer.content import Content
from datamodels.explorer.examples import Examples
from datamodels.explorer.export import bundle, data_of, page, sprites
from tests.explorer_runs import ADDRESS, HOSTILE, client, content, data_in, decoded, dense_run, exporting, folder

__all__ = ["client", "content", "folder"]  # fixtures


# -- arrays and answers -------------------------------------------------------------------------------

STATIC = {
    "index.html": '<!doctype html>\n<html><head>\n<title>x</title>\n<link rel="stylesheet" href="static/style.css">\n</head>'
    '<body>\n<script src="static/plotly.js"></script>\n<script type="module" src="static/app.js"></script>\n</body></html>',
    "style.css": "body { color: red }",
    "app.js": 'import { one } from "./one.js";\nexport const x = one();',
    "one.js": "export function one() {\n  return 1;\n}",
}


@pytest.fixture
def static(tmp_path: Path) -> Path:
    folder = tmp_path / "static"
    folder.mkdir()
    for name, text in STATIC.items():
        (folder / name).write_text(text)
    return folder


def test_an_export_holds_the_same_arrays(content: Content, folder: Path, static: Path) -> None:
    text = page(content, static)
    data = data_in(text)
    lasso = Attribution.load(folder / "lasso.h5ad").weights
    packed = data["weights"]["lasso"]
    starts, indices = decoded(packed["indptr"], np.int32), decoded(packed["indices"], np.int32)
    values = decoded(packed["values"], np.float32)
    whole = np.zeros_like(lasso)
    for k in range(40):
        part = slice(starts[k], starts[k + 1])
        whole[indices[part], k] = values[part]
    np.testing.assert_array_equal(whole, lasso)
    for side in ("targets", "train"):
        for column in content.columns[side]:  # type: ignore[index]
            found = decoded(data["columns"][side][column.name], column.packed.dtype)
            np.testing.assert_array_equal(found, column.values)
    np.testing.assert_array_equal(decoded(data["maps"]["PCA, ridge"], np.float32).reshape(40, 2), content.map(0))
    assert len(data["details"]["targets"]) == 40
    assert data["details"]["targets"][3]["outputs"]["runs"] == 160
    assert data["meta"]["can_verify"] is False
    assert data["sprites"]["targets"][0].startswith("data:image/png;base64,")
    assert "connect-src 'none'" in text
    own = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "static/" not in own
    assert "http:" not in own
    assert "https:" not in own


def test_dense_attributions_are_cut_in_an_export(tmp_path: Path, static: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    Attribution(weights, np.zeros(5)).save(tmp_path / "a.h5ad")
    data = data_in(page(gather(tmp_path / "a.h5ad", progress=False), static))
    (about,) = data["meta"]["attributions"]
    assert about["cut"] == 100
    packed = data["weights"][about["name"]]
    assert decoded(packed["indptr"], np.int32).tolist() == list(range(0, 501, 100))
    first = set(decoded(packed["indices"], np.int32)[:100].tolist())
    assert first == set(np.argsort(-np.abs(weights[:, 0]))[:100].tolist())
    np.testing.assert_allclose(decoded(packed["size"], np.float32), np.abs(weights).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("room", "steps"), [(2 * 750, 32767), (750, 127), (749, None)])
def test_all_weights_of_a_dense_attribution_are_there_rounded_where_they_fit(
    tmp_path: Path, static: Path, monkeypatch: pytest.MonkeyPatch, room: int, steps: int | None
) -> None:
    monkeypatch.setattr(exporting, "_ROUNDED", room)
    weights = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    weights[:, 3] = 0
    Attribution(weights, np.zeros(5)).save(tmp_path / "a.h5ad")
    data = data_in(page(gather(tmp_path / "a.h5ad", progress=False), static))
    (about,) = data["meta"]["attributions"]
    packed = data["weights"][about["name"]]
    assert about["steps"] == steps
    assert ("rounded" in packed) is (steps is not None)
    if steps is not None:
        whole = decoded(packed["rounded"], np.int16 if steps > 127 else np.int8).reshape(150, 5)
        found = whole * decoded(packed["units"], np.float32)
        assert (np.abs(found - weights) <= 0.5001 * np.abs(weights).max(axis=0) / steps).all()


def test_the_room_for_rounded_weights_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dense_run(tmp_path, 150, 5)
    for room, steps in ((3000, [32767, 32767]), (2999, [127, 127]), (1499, [127, None]), (749, [None, None])):
        monkeypatch.setattr(exporting, "_ROUNDED", room)
        assert [about["steps"] for about in data_of(content)["meta"]["attributions"]] == steps


def test_an_export_compares_as_the_server_does(tmp_path: Path) -> None:
    content = dense_run(tmp_path, 150, 5)
    data, expected = data_of(content), content.agreement(*content.attributions)
    assert list(data["agreement"]) == ["0/1"]
    found = decoded(data["agreement"]["0/1"], np.float32).reshape(2, 5)
    np.testing.assert_array_equal(found, [expected["overlap"], expected["cosine"]])


def test_many_colour_pictures_stay_small_in_an_export() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (10_000, 7, 7, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    split = Split(np.zeros((10_000, 1), np.float32), np.zeros(10_000, np.int64), None, pictures)
    looks = {"kind": "images", "picture": [28, 28], "n_features": 1}
    content = Namespace(examples={"train": Examples(np.arange(10_000), looks, lambda: split)})
    about, urls = sprites(content, "train")  # type: ignore[arg-type, misc]
    assert sum(map(len, urls)) < 7e6  # of noise, which packs worst
    assert sum(about["pages"]) == 10_000
    whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(urls[9].partition(",")[2]))))
    width, height = about["tile"]
    for i in (0, 33, 700):
        top, left = height * (i // 32), width * (i % 32)
        tile = whole[top : top + height, left : left + width].astype(float)
        assert np.abs(tile.mean((0, 1)) - pictures[9 * 1024 + i].mean((0, 1))).max() < 6


# -- the page -----------------------------------------------------------------------------------------


def test_hostile_labels_are_data(tmp_path: Path, static: Path) -> None:
    names = np.array([HOSTILE, "plain", "<!--", "</SCRIPT>"] * 2)
    attribution = Attribution(
        np.random.default_rng(0).normal(size=(6, 8)),
        np.zeros(8),
        {HOSTILE.replace("/", ""): names, "id": names, "text": names},
        provenance={"estimator": {"name": HOSTILE}},
    )
    attribution.save(tmp_path / "a.h5ad")
    content = gather(tmp_path / "a.h5ad", progress=False)
    text = page(replace(content, title=HOSTILE), static)
    assert tags_of(text) == tags_of(page(gather_plain(tmp_path), static))
    data = data_in(text)
    assert data["meta"]["title"] == HOSTILE
    assert data["meta"]["attributions"][0]["name"] == HOSTILE
    column = next(c for c in data["meta"]["targets"]["columns"] if "img" in c["name"])
    codes = decoded(data["columns"]["targets"][column["name"]], np.int32)
    assert [column["categories"][code] for code in codes] == names.tolist()
    assert data["names"]["targets"]["ids"] == names.tolist()
    assert data["details"]["targets"][0]["text"] == HOSTILE
    with TestClient(app(content), base_url=ADDRESS) as client:
        answer = client.get("/api/meta")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["attributions"][0]["name"] == HOSTILE


def gather_plain(folder: Path) -> Content:
    Attribution(np.eye(6, 8), np.zeros(8)).save(folder / "plain.h5ad")
    return gather(folder / "plain.h5ad", cache=folder / "plain", progress=False)


def tags_of(text: str) -> list[str]:
    """The elements that a browser makes of a page."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    return found


def test_modules_become_one_script_in_the_order_of_their_imports() -> None:
    modules = {
        "app.js": 'import { a, b } from "./b.js";\nimport {c} from "./c.js"\nexport async function start() {\n  return a + b + c;\n}\nstart();',
        "b.js": "import { c } from './c.js';\nexport const a = c, x = 1;\nexport class b {}\n// export in a comment",
        "c.js": "export let c = 2;\nfunction own() {}",
        "unused.js": "export const never = 1;",
    }
    made = bundle(modules)
    assert made.index("let c = 2") < made.index("const a = c") < made.index("async function start")
    assert not re.search(r"^(import|export)\b", made, flags=re.MULTILINE)
    assert "never" not in made
    assert "// export in a comment" in made


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"app.js": "export default 1;"}, "cannot inline"),
        ({"app.js": 'import * as a from "./b.js";', "b.js": ""}, "cannot inline"),
        ({"app.js": 'import "./b.js";', "b.js": ""}, "cannot inline"),
        ({"app.js": 'import { a as b } from "./b.js";', "b.js": "export const a = 1;"}, "does not export"),
        ({"app.js": 'import { a } from "./b.js";', "b.js": "const a = 1;"}, "does not export"),
        ({"app.js": 'import { a } from "./b.js";'}, "not there"),
        ({"app.js": 'import { a } from "https://x.example/b.js";'}, "cannot inline"),
        ({"app.js": 'import { a } from "./b.js";\nconst z = 1;', "b.js": "export const a = 1;\nconst z = 2;"}, "both declare z"),
        ({"app.js": "const { a } = {};"}, "taken apart"),
        (
            {"app.js": 'import { a } from "./b.js";\nexport const c = 1;', "b.js": 'import { c } from "./app.js";\nexport const a = 1;'},
            "in a circle",
        ),
        ({}, "not there"),
    ],
)  # fmt: skip
def test_other_forms_of_modules_are_refused(modules: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        bundle(modules)


@pytest.mark.parametrize(
    ("name", "text"), [("app.js", "const a = '</script>';"), ("style.css", "a::after { content: '</style>' }")]
)
def test_a_script_that_would_end_early_is_refused(content: Content, static: Path, name: str, text: str) -> None:
    (static / name).write_text(text)
    with pytest.raises(RequestError, match="end it early"):
        page(content, static)


# -- the command --------------------------------------------------------------------------------------


def test_the_command_exports_a_page_and_says_its_size(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["explore", str(folder), "--export", str(out), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"page": str(out), "bytes": out.stat().st_size}
    assert out.stat().st_size < 15e6
    assert data_in(out.read_text())["meta"]["title"] == "A small run"


def test_the_shipped_page_can_be_served_and_exported(client: TestClient, content: Content, tmp_path: Path) -> None:
    assert client.get("/").headers["content-type"].startswith("text/html")
    for name in ("app.js", "style.css", "plotly.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert export(content, tmp_path / "x.html").read_text().startswith("<!doctype html>")
    with pytest.raises(RequestError, match="cannot write"):
        export(content, tmp_path)
