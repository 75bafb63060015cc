"""The reference: every public name is on one page of it, and docstrings say all that a reader needs."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel

import datamodels
from datamodels import errors
from datamodels.errors import CampaignError, RequestError
from tests.test_docs import BLOCK

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "reference").glob("*.md"))
SECTION = re.compile(r"^([A-Z]\w+(?: \w+)*)\n-{3,}\n", re.MULTILINE)
_AXIS = r"(?:\.\.\.|\*?\w+(?:\([^()]*\))?(?: [-+*/] \w+)*)"
SHAPE = re.compile(rf"\((?:{_AXIS},|{_AXIS}(?:, {_AXIS})+|\.\.\.)\)|[Aa]s in `")
ERRORS = {name for name, value in vars(errors).items() if inspect.isclass(value)}


def names_on(page: Path) -> list[str]:
    return re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)


def found(name: str) -> Any:
    """What a dotted name is; a module's name goes before that of something that its package imports."""
    module, _, last = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), last)
    except ModuleNotFoundError:  # it is a class
        return getattr(found(module), last)


def public() -> dict[str, Any]:
    """All names that packages list, and those that documents and tutorials import."""
    names = {}
    for package in [datamodels, *map(_module, pkgutil.walk_packages(datamodels.__path__, "datamodels."))]:
        if package is not None:
            names |= {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__}
    texts = [path.read_text() for path in [ROOT / "README.md", *DOCS.rglob("*.md")]]
    blocks = [text for document in texts for language, text in BLOCK.findall(document) if language == "python"]
    for block in [*blocks, *(path.read_text() for path in DOCS.glob("tutorials/*.py"))]:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "datamodels":
                names |= {f"{node.module}.{alias.name}": found(f"{node.module}.{alias.name}") for alias in node.names}
    return {name: value for name, value in names.items() if not isinstance(value, ModuleType)}


def _module(info: pkgutil.ModuleInfo) -> ModuleType | None:
    module = importlib.import_module(info.name) if info.ispkg else None
    return module if hasattr(module, "__all__") else None


def test_every_public_name_is_on_one_page_of_the_reference() -> None:
    listed = [(page.name, name, found(name)) for page in PAGES for name in names_on(page)]
    for name, value in public().items():
        places = [place for place in listed if place[2] is value]
        assert len(places) == 1, (name, places)
    assert len({id(value) for _, _, value in listed}) == len(listed)


# -- what a docstring must say ---------------------------------------------------------------------


def sections(text: str | None) -> dict[str, str]:
    """A docstring in the style of numpy, by section; what comes first is called summary."""
    parts = SECTION.split(inspect.cleandoc(text or ""))
    return {"summary": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(section: str) -> dict[str, str]:
    """name -> what is said of it, of a section of parameters; several names may stand on one line."""
    said: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(" "):
            names = [name.strip().lstrip("*") for name in line.partition(" : ")[0].split(",")]
            said |= dict.fromkeys(names, "")
        else:
            said |= {name: f"{said[name]} {line.strip()}".strip() for name in names}
    return said


def test_sections_and_entries_are_read() -> None:
    text = "Do it.\n\n    Parameters\n    ----------\n    a, b\n        (m, t) numbers,\n        two.\n    **more\n        Rest.\n\n    Raises\n    ------\n    RequestError\n        when not."
    read = sections(text)
    assert list(read) == ["summary", "Parameters", "Raises"]
    assert entries(read["Parameters"]) == {"a": "(m, t) numbers, two.", "b": "(m, t) numbers, two.", "more": "Rest."}
    assert all(
        SHAPE.search(shape)
        for shape in ("(m, t)", "(n_train,)", "(k, *shape)", "(...)", "(stop - start, n)", "(m, ceil(n / 8))")
    )
    assert not SHAPE.search("an array (or a list, or text) of numbers (floats)")


def described(value: Any) -> dict[str, str]:
    """What a docstring says of each parameter or field, also where it says that they are those of something else."""
    text = inspect.getdoc(value) or ""
    read = sections(text)
    said = {name: what for key in ("Attributes", "Parameters") for name, what in entries(read.get(key, "")).items()}
    for other in re.findall(r"Parameters (?:are )?(?:as in|those of) `([\w.]+)`", text):
        said = described(_named(other, value)) | said
    fields = value.model_fields.items() if inspect.isclass(value) and issubclass(value, BaseModel) else ()
    return said | {name: field.description for name, field in fields if field.description}


def _named(name: str, beside: Any) -> Any:
    places = (beside.__module__, f"{beside.__module__}.{beside.__qualname__.rpartition('.')[0]}", "")
    for place in places:
        try:
            return found(f"{place}.{name}".strip("."))
        except (AttributeError, ModuleNotFoundError, ValueError):
            continue
    raise AssertionError(f"{beside.__qualname__} names {name}, which is not there")


def parameters_of(value: Any) -> list[str]:
    """Names of what a function, or the maker of an object, takes; an abstract class and an error are not made by users."""
    if inspect.isclass(value) and (
        issubclass(value, BaseException) or inspect.isabstract(value) or vars(value).get("_is_protocol")
    ):
        return []
    return [name for name in inspect.signature(value).parameters if name != "self" and not name.startswith("_")]


def is_array(value: Any, parameter: str) -> bool:
    return bool(re.search("NDArray|ArrayLike", str(inspect.signature(value).parameters[parameter].annotation)))


def members_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class defines. What it takes over, in name or in meaning, its base describes."""
    for name, held in vars(kind).items():
        real = next((held for part in ("fget", "func", "__func__") if (held := getattr(held, part, None))), held)
        if name.startswith("_") or not inspect.isfunction(real):
            continue
        if real.__doc__ or not any(hasattr(base, name) for base in kind.__mro__[1:]):
            yield name, real


def raised_by(value: Any, seen: frozenset[str] = frozenset()) -> set[str]:
    """Errors of this package that a function raises, or the making of an object, itself or in private functions beside it."""
    tree: ast.AST = ast.parse(textwrap.dedent(inspect.getsource(value)))
    if inspect.isclass(value):
        makers = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name in ("__init__", "__post_init__")
        ]
        tree = ast.Module(body=[*makers], type_ignores=[])
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            beside = vars(inspect.getmodule(value)).get(node.func.id)
            if node.func.id.startswith("_") and node.func.id not in seen and inspect.isfunction(beside):
                names |= raised_by(beside, seen | {node.func.id})
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            names.add(node.exc.func.id)
    return names & ERRORS


def gaps(name: str, value: Any, *, method: bool = False) -> Iterator[str]:
    """What the docstring of a function, a class or a method leaves out.

    A function has a section of parameters; methods, and classes of results, may name them in their text.
    """
    text = (value.__doc__ if inspect.isclass(value) else inspect.getdoc(value)) or ""
    read = sections(text)
    if not re.match(r"\S.*?[.:?]($|\s)", read["summary"], re.DOTALL):
        yield f"{name}: no summary"
        return
    said = described(value)
    named = "\\b{}\\b" if method else "`{}`" if inspect.isclass(value) else "(?!)"
    for parameter in parameters_of(value):
        if parameter not in said and not re.search(named.format(parameter), text):
            yield f"{name}: says nothing of {parameter}"
        elif is_array(value, parameter) and not SHAPE.search(said.get(parameter, text)):
            yield f"{name}: no shape of {parameter}"
    if (
        not inspect.isclass(value)
        and "NDArray" in str(inspect.signature(value).return_annotation)
        and not SHAPE.search(text)
    ):
        yield f"{name}: no shape of what it returns"
    for error in sorted(raised_by(value)):
        kinds = {kind.__name__ for kind in getattr(errors, error).__mro__}
        if not kinds & {*entries(read.get("Raises", ""))}:
            yield f"{name}: raises {error} and does not say so"


def _lacking(masks: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Do something."""
    if k < 1:
        raise RequestError(k)
    return _refuse(np.asarray(masks))


def _refuse(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    raise CampaignError(masks)


def test_what_a_docstring_leaves_out_is_found() -> None:
    assert list(gaps("f", _lacking)) == [
        "f: says nothing of masks",
        "f: says nothing of k",
        "f: no shape of what it returns",
        "f: raises CampaignError and does not say so",
        "f: raises RequestError and does not say so",
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if names_on(page)], ids=lambda page: page.stem)
def test_docstrings_say_all_that_a_reader_needs(page: Path) -> None:
    missing = []
    for name in names_on(page):
        value = found(name)
        if not callable(value):
            assert constant_is_described(name), name
            continue
        missing += gaps(name, value)
        if inspect.isclass(value):
            missing += [
                gap for part, member in members_of(value) for gap in gaps(f"{name}.{part}", member, method=True)
            ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(
    ("name", "paper"),
    {
        "datamodels.Lasso": "Ilyas et al. 2022",
        "datamodels.ElasticNet": "Zou & Hastie 2005",
        "datamodels.Ridge": "Golub, Heath & Wahba 1979",
        "datamodels.DifferenceInMeans": "Feldman & Zhang 2020",
        "datamodels.lds": "Park et al. 2023",
        "datamodels.select": "Candès, Fan, Janson & Lv 2018",
        "datamodels.intervals": "Javanmard & Montanari 2014",
        "datamodels.stability": "Shah & Samworth 2013",
        "datamodels.TRAK": "Park et al. 2023",
        "datamodels.TRAK.similarity": "Pruthi et al.",
        "datamodels.trak.Contrastive": "Park et al. 2023",
        "datamodels.training.outputs.log_odds_margins": "Park et al. 2023",
        "datamodels.evaluation.data_support": "Ilyas et al. 2022",
        "datamodels.evaluation.brittleness": "Ilyas et al. 2022",
        "datamodels.evaluation.mislabel_scores": "Feldman & Zhang 2020",
        "datamodels.evaluation.MislabelScore": "DeLong et al.",
        "datamodels.applications.d3m": "Jain et al. 2024",
        "datamodels.applications.group_alignment": "Jain et al. 2024",
        "datamodels.applications.pseudo_groups": "Jain et al. 2024",
        "datamodels.applications.debias": "Jain et al. 2024",
        "datamodels.applications.cluster": "Traag, Waltman & van Eck 2019",
        "datamodels.applications.validation.cluster_stability": "Hennig 2007",
        "datamodels.applications.validation.stability.Separation": "Liu et al. 2008",
        "datamodels.applications.validation.confounding.Confounder": "Bergsma (2013)",
        "datamodels.applications.validation.markers": "Gao, Bien & Witten 2022",
    }.items(),
)
def test_methods_name_their_papers(name: str, paper: str) -> None:
    assert paper in " ".join(inspect.getdoc(found(name)).split())


def constant_is_described(name: str) -> bool:
    """Whether a text stands below the assignment, here or where the name is imported from."""
    module, _, last = name.rpartition(".")
    body = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for node, after in zip(body, [*body[1:], None], strict=True):
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == last for target in targets):
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(node, ast.ImportFrom) and any(alias.name == last for alias in node.names):
            return constant_is_described(f"{node.module}.{last}")
    return False
