"""``python -m datamodels.training.initialize_store --logging.logdir=DIR --logging.spec=SPEC.json``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from datamodels import options
from datamodels.spec import Spec
from datamodels.store import Store


class Logging(BaseModel):
    model_config = ConfigDict(extra="forbid")

    logdir: Annotated[str, Field(min_length=1, description="folder of the store; made when absent")]
    spec: Annotated[str, Field(min_length=1, description="JSON file: num_models and schema")]


_SECTIONS: dict[str, type[BaseModel]] = {"logging": Logging}


def main(argv: Sequence[str] | None = None) -> None:
    """Make an empty store from a spec file; one that exists is refused."""
    options.command("datamodels.training.initialize_store", main.__doc__ or "", _SECTIONS, argv, _make)


def _make(_: options.Options, sections: dict[str, Any]) -> str:
    given: Logging = sections["logging"]
    store = Store.create(given.logdir, spec=Spec.read(given.spec))
    return f"made a store of {store.n_models} models at {given.logdir} with {', '.join(store.keys)}"


if __name__ == "__main__":
    main()
