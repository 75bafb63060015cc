"""The card of a dataset: what it holds, where it comes from, how to load it and how to go on.

Only the front matter's own entries and the part between two marks are ours; what people write around them stays.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import yaml

from datamodels.errors import DatamodelsWarning, RequestError, first_line
from datamodels.hub.contents import ALONE, There
from datamodels.spec import MASKS

_BEGIN, _END = "<!-- datamodels: begin -->", "<!-- datamodels: end -->"
_TAGS = ["datamodels", "data-attribution"]
_UNKNOWN = "unknown"


def card(
    old: str, repository: str, stores: Sequence[There], counts: Sequence[int], people: dict[str, int],
    run: dict[str, Any] | None, license: str | None, recipes: Sequence[str] = (),
) -> str:  # fmt: skip
    """The text of ``README.md``.

    Parameters
    ----------
    old
        The text that is there, empty if none.
    repository
        ``USER/NAME``.
    stores, counts
        What is there, and how many rows of each.
    people
        Who sent how many rows.
    run
        The content of ``run.json``, if a run was pushed.
    license
        As the Hub names it; by default the one that is there.
    recipes
        Files of recipes that are there, ``run/recipe.yaml``.

    Raises
    ------
    RequestError
        when the front matter that is there is no YAML.
    """
    front, body = _split(old)
    if license is not None:
        front["license"] = license
    elif "license" not in front:
        front["license"] = _UNKNOWN
        warnings.warn(
            f"the card of {repository} says 'license: {_UNKNOWN}', so nobody knows what its rows may be used for: give --license (as mit, cc-by-4.0)",
            DatamodelsWarning,
            stacklevel=2,
        )
    tags = front.get("tags") or []
    front["tags"] = [*tags, *(tag for tag in _TAGS if tag not in tags)]
    own = [
        {"config_name": store.name, "data_files": [{"split": "train", "path": f"data/{store.name}/*.parquet"}]}
        for store, count in zip(stores, counts, strict=True)
        if count
    ]
    names = {config["config_name"] for config in own}
    front["configs"] = [*(other for other in front.get("configs") or [] if other.get("config_name") not in names), *own]
    if not front["configs"]:
        del front["configs"]
    title = _line(run["title"]) if run else repository.split("/")[1]
    section = f"{_BEGIN}\n{_section(repository, stores, counts, people, run, recipes)}\n{_END}"
    before, mark, rest = body.partition(_BEGIN)
    if mark:
        body = before + section + rest.partition(_END)[2]
    else:
        body = (body.rstrip() or f"# {title}") + f"\n\n{section}\n"
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n{body.lstrip()}"


def _split(text: str) -> tuple[dict[str, Any], str]:
    found = re.match(r"---\r?\n(.*?)^---\r?\n", text, re.DOTALL | re.MULTILINE)
    if not found:
        return {}, text
    try:
        front = yaml.safe_load(found[1]) or {}
    except yaml.YAMLError as error:
        raise RequestError(
            f"the front matter of README.md on the Hub is no YAML ({first_line(error)}): mend it there"
        ) from None
    if not isinstance(front, dict):
        raise RequestError("the front matter of README.md on the Hub is no mapping: mend it there")
    return front, text[found.end() :]


def _section(
    repository: str, stores: Sequence[There], counts: Sequence[int], people: dict[str, int], run: dict[str, Any] | None,
    recipes: Sequence[str],
) -> str:  # fmt: skip
    address = f"hf://datasets/{repository}"
    parts = [
        "Outcomes of training a model class many times on subsets of a training set: each row is one model, what it saw and what "
        "it said. Datamodels are fitted to such rows. Made with `datamodels` (`pip install 'datamodels-kit[hub]'`).",
        "## Rows",
        "| store | rows here | of | training examples | design | keys |\n|---|---|---|---|---|---|",
    ]
    for store, count in zip(stores, counts, strict=True):
        spec, design = store.meta.spec, store.meta.design
        keys = ", ".join(f"`{key}` {field.dtype} {list(field.shape)}" for key, field in spec.fields.items())
        drawn = "masks of the task" if design is None else f"{design.kind}, alpha {design.alpha}, seed {design.seed}"
        drawn += f", {design.replicates} runs per mask" if design is not None and design.replicates > 1 else ""
        drawn += f", sweep over {', '.join(store.meta.sweep.parameters)}" if store.meta.sweep else ""
        seen = "" if design is None else f"{design.n_train:,}"
        parts[-1] += f"\n| `{store.name}` | {count:,} | {spec.num_models:,} | {seen} | {drawn} | {keys} |"
    parts += [
        "Beside the keys, each shard has `row` (the number of the model) and `checksum` (CRC-32 over the row's number and bytes). "
        "Schema, design and sweep are in `stores/NAME/store.json`, which rows there are in `index/`.",
        "## Where it comes from",
        _provenance(stores, people, run),
        "## Load it",
        _loading(repository, stores, counts),
        "## Go on with it",
        "Several people may extend the run at once, each with rows of their own:",
        _going_on(address, stores, run, recipes),
    ]
    return "\n\n".join(parts)


def _provenance(stores: Sequence[There], people: dict[str, int], run: dict[str, Any] | None) -> str:
    lines = []
    for store in stores:
        record = store.meta.record
        made = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        lines.append(f"* `{store.name}`: made {record.get('created', 'at an unknown time')} with {made}")
    for name in ("dataset", "task"):
        if run and run.get(name):
            lines.append(f"* {name}: `{_line(run[name])}`")
    if people:
        lines.append("* rows by " + ", ".join(f"{name} ({count:,})" for name, count in sorted(people.items())))
    if run and run.get("recipe"):
        lines.append("\n```yaml\n" + yaml.safe_dump({"recipe": run["recipe"]}, sort_keys=False).rstrip() + "\n```")
    if run and run.get("commands"):
        lines.append("\n```bash\n" + "\n".join(_line(command) for command in run["commands"]) + "\n```")
    return "\n".join(lines)


def _loading(repository: str, stores: Sequence[There], counts: Sequence[int]) -> str:
    full = [store for store, count in zip(stores, counts, strict=True) if count]
    if not full:
        return "There are no rows yet."
    name = "" if full[0].name == ALONE else f', "{full[0].name}"'
    text = (
        f'```python\nfrom datasets import load_dataset\n\nrows = load_dataset("{repository}"{name}, split="train")\n```'
    )
    if full[0].meta.design is None or MASKS in full[0].meta.spec.fields:
        return text
    given = full[0].meta.design.kind == "explicit"
    packed = (
        f', np.load(hf_hub_download("{repository}", "stores/{full[0].name}/design_masks.npy", repo_type="dataset"))'
    )
    return (
        f"{text}\n\nThe masks are {'given by' if given else 'drawn again from'} the design:\n\n```python\nimport json\n\n"
        f"{'import numpy as np' + chr(10) if given else ''}from datamodels import Design\nfrom huggingface_hub import hf_hub_download\n\n"
        f'file = hf_hub_download("{repository}", "stores/{full[0].name}/store.json", repo_type="dataset")\n'
        f'design = Design.from_dict(json.load(open(file))["design"]{packed if given else ""})\n'
        'masks = design.masks_of(rows["row"])\n```'
    )


def _going_on(address: str, stores: Sequence[There], run: dict[str, Any] | None, recipes: Sequence[str]) -> str:
    option = "" if len(stores) == 1 else f" --store {stores[0].name}"
    work = f"--recipe {recipes[0]}" if recipes else "--task PKG.MODULE:FUNCTION"
    of = "" if recipes else "   # what trained the rows that are here; no recipe was sent along"
    place = "run" if run is None else f"run/{run['stores'].get(stores[0].name, stores[0].name)}"
    return "\n".join(
        [
            "```bash",
            f"datamodels pull {address} run",
            f"rows=$(datamodels claim {address} --rows 1000{option})",
            f'datamodels train {place} {work} --rows "$rows"{of}',
            f"datamodels push run {address}",
            "```",
        ]
    )


def _line(text: Any) -> str:
    """Text on one line, which ends no code block."""
    return " ".join(str(text).split()).replace("```", "'''")
