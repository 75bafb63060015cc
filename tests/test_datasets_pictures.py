"""Pictures in folders and in Hugging Face datasets: splits, colours, sizes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodels import datasets
from datamodels.datasets import image_folder
from datamodels.errors import RequestError

RNG = np.random.default_rng


# -- folders ------------------------------------------------------------------------------------------


def write_pictures(root: Path, layout: dict[str, int], mode: str = "L", size: tuple[int, int] = (4, 6)) -> None:
    """``layout`` maps a class folder to a number of PNGs, each of one grey level: 10 x class + number."""
    for code, (name, count) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (size[1], size[0]), 10 * code + i).save(root / name / f"{i:02d}.png")


def test_folders_with_a_test_split_read_back(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"cat": 3, "dog": 2})
    write_pictures(tmp_path / "test", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "train" / ".cache").mkdir()
    data = image_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.name == tmp_path.name
    assert (data.train.x.shape, data.test.x.shape) == ((5, 1, 4, 6), (2, 1, 4, 6))
    np.testing.assert_array_equal(data.train.images[:, 0, 0], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(data.train.y, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(data.test.flat[:, 0], [0, 10 / 255], rtol=1e-6)
    with pytest.raises(RequestError, match="test must not be given"):
        image_folder(tmp_path, test=0.5)


def test_folders_without_a_test_split_are_drawn(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 7, "b": 3})
    data = image_folder(tmp_path / "d", test=0.3, name="mine")
    assert (len(data.train), len(data.test), data.name) == (7, 3, "mine")
    levels = np.concatenate([data.train.images, data.test.images])[:, 0, 0].tolist()
    assert sorted(levels) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]
    np.testing.assert_array_equal(data.train.y, data.train.images[:, 0, 0] >= 10)
    again, other = (image_folder(tmp_path / "d", test=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(data.test.images, again.test.images)
    assert not np.array_equal(data.test.images, other.test.images)
    with pytest.raises(RequestError, match=r"as in test=0\.2"):
        image_folder(tmp_path / "d")
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(RequestError, match="both splits need some"):
            image_folder(tmp_path / "d", test=share)


def test_one_coloured_picture_makes_all_coloured(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    Image.new("RGBA", (6, 4), (200, 100, 50, 128)).save(tmp_path / "d" / "b" / "02.png")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "d" / "b" / "03.png", transparency=b"\x00\xff")
    data = image_folder(tmp_path / "d", test=1 / 6)
    images = np.concatenate([data.train.images, data.test.images])
    assert images.shape == (6, 4, 6, 3)
    assert data.train.x.shape == (5, 3, 4, 6)
    colours = {tuple(image[0, 0].tolist()) for image in images}
    assert colours == {(0, 0, 0), (1, 1, 1), (10, 10, 10), (11, 11, 11), (200, 100, 50), (9, 8, 7)}


def test_sizes_agree_or_are_made_to(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    Image.new("L", (5, 5), 77).save(tmp_path / "d" / "b" / "01.png")
    with pytest.raises(RequestError, match=r"b/01\.png has 5 x 5 pixels .*a/00\.png has 4 x 6; give a size"):
        image_folder(tmp_path / "d", test=0.25)
    assert image_folder(tmp_path / "d", size=3, test=0.25).train.x.shape == (3, 1, 3, 3)
    data = image_folder(tmp_path / "d", size=(2, 8), test=0.25)
    assert data.train.images.shape == (3, 2, 8)
    assert set(np.concatenate([data.train.images, data.test.images]).ravel().tolist()) == {0, 1, 10, 77}
    with pytest.raises(RequestError, match="size is 0"):
        image_folder(tmp_path / "d", size=0, test=0.25)


def test_folders_without_classes_or_readable_pictures_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    with pytest.raises(RequestError, match="absent is no folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(RequestError, match="it needs one per class, at least two"):
        image_folder(tmp_path / "d" / "a", test=0.5)
    (tmp_path / "d" / "c").mkdir()
    with pytest.raises(RequestError, match=r"c has no pictures \(.png, .jpg, .jpeg\)"):
        image_folder(tmp_path / "d", test=0.5)
    (tmp_path / "d" / "c").rmdir()
    broken = tmp_path / "d" / "b" / "01.png"
    Image.fromarray(RNG(0).integers(0, 256, (4, 6)).astype(np.uint8)).save(broken)
    whole = broken.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-30]):
        broken.write_bytes(content)
        with pytest.raises(RequestError, match=r"01\.png cannot be read as a picture"):
            image_folder(tmp_path / "d", test=0.5)
    Image.fromarray(np.full((4, 6), 3000, np.uint16)).save(broken)
    with pytest.raises(RequestError, match=r"01\.png has pixels of mode I;16, not 8 bits"):
        image_folder(tmp_path / "d", test=0.5)
    write_pictures(tmp_path / "e" / "train", {"a": 1, "b": 1})
    write_pictures(tmp_path / "e" / "test", {"a": 1, "z": 1})
    with pytest.raises(RequestError, match="z is a class that the train folder lacks; legal: a, b"):
        image_folder(tmp_path / "e")


# -- Hugging Face -------------------------------------------------------------------------------------


@pytest.fixture
def hf() -> Any:
    return pytest.importorskip("datasets")


def hf_pictures(hf: Any, labels: list[int], start: int, mode: str = "L") -> Any:
    features = hf.Features(
        {"image": hf.Image(), "label": hf.ClassLabel(names=["zebra", "ant"]), "kind": hf.Value("string")}
    )
    pictures = [Image.new(mode, (6, 4), start + i if mode == "L" else (start + i, 0, 9)) for i in range(len(labels))]
    kinds = [f"k{i % 2}" for i in range(len(labels))]
    return hf.Dataset.from_dict({"image": pictures, "label": labels, "kind": kinds}, features=features)


def test_hf_pictures_read_back(hf: Any) -> None:
    both = hf.DatasetDict({"train": hf_pictures(hf, [0, 1, 1], 10), "test": hf_pictures(hf, [1, 0], 50)})
    data = datasets.from_hf(both, "animals", hidden="kind")
    assert (data.name, data.class_names) == ("animals", ("zebra", "ant"))
    assert (data.train.x.shape, data.test.x.shape) == ((3, 1, 4, 6), (2, 1, 4, 6))
    np.testing.assert_array_equal(data.train.images[:, 0, 0], [10, 11, 12])
    np.testing.assert_array_equal(data.test.y, [1, 0])
    assert (data.hidden_name, data.hidden_names) == ("kind", ("k0", "k1"))
    np.testing.assert_array_equal(data.train.hidden, [0, 1, 0])
    mixed = datasets.from_hf((both["train"], hf_pictures(hf, [1], 50, "RGB")), "mixed", size=2, hidden="label")
    assert mixed.train.images.shape == (3, 2, 2, 3)
    assert mixed.test.images[0, 0, 0].tolist() == [50, 0, 9]
    assert mixed.hidden_names == ("ant", "zebra")


def test_hf_arrays_and_columns_of_numbers_read_back(hf: Any) -> None:
    cube = RNG(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    features = hf.Features(
        {"a": hf.Array2D((4, 5), "uint8"), "u": hf.Value("float32"), "v": hf.Value("int64"), "y": hf.Value("string")}
    )
    table = {"a": list(cube), "u": [0.5, 1.5, 2.5], "v": [1, 2, 3], "y": ["n", "m", "n"]}
    split = hf.Dataset.from_dict(table, features=features)
    pictures = datasets.from_hf((split, split), "cubes", features="a", label="y")
    np.testing.assert_array_equal(pictures.train.images, cube)
    assert pictures.class_names == ("m", "n")
    lists = hf.Features({"a": hf.Sequence(hf.Sequence(hf.Value("uint8"))), "y": hf.Value("string")})
    nested = hf.Dataset.from_dict({"a": cube.tolist(), "y": table["y"]}, features=lists)
    np.testing.assert_array_equal(datasets.from_hf((nested, nested), "n", features="a", label="y").test.images, cube)
    columns = datasets.from_hf((split, split), "columns", features=["u", "v"], label="y")
    np.testing.assert_array_equal(columns.train.x, [[0.5, 1], [1.5, 2], [2.5, 3]])
    one = datasets.from_hf((split, split), "one", features="v", label="y")
    np.testing.assert_array_equal(one.train.x, [[1], [2], [3]])


def test_hf_data_that_does_not_fit_is_refused(hf: Any) -> None:
    split = hf_pictures(hf, [0, 1], 10)
    other = split.cast_column("label", hf.ClassLabel(names=["ant", "zebra"]))
    for message, data, options in (
        ("the DatasetDict has train; needed", hf.DatasetDict({"train": split}), {}),
        ("got Dataset; needed is a DatasetDict", split, {}),
        ("no column 'picture'; it has image, label, kind", (split, split), {"image": "picture"}),
        ("holds str in train example 0, not a picture", (split, split), {"image": "kind"}),
        ("both given", (split, split), {"image": "image", "features": "kind"}),
        ("size is for pictures", (split, split), {"size": 3, "features": "kind"}),
        ("they must agree", (split, other), {}),
        ("y_test has no label for example 1", (split, hf_pictures(hf, [0, -1], 10)), {}),
        ("without examples", (split, split.select([])), {}),
        ("x_train must be numbers", (split, split), {"features": "kind"}),
    ):
        with pytest.raises(RequestError, match=message):
            datasets.from_hf(data, "d", **options)
