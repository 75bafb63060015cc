"""``python -m datamodels.training.initialize_store --logging.logdir=DIR --logging.spec=SPEC.json``"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

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
    argv = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(argv):
        print(options.help_text("datamodels.training.initialize_store", main.__doc__ or "", _SECTIONS))
        return
    try:
        given = options.build(options.parse(argv, _SECTIONS), _SECTIONS)["logging"]
        store = Store.create(given.logdir, spec=Spec.read(given.spec))
    except Exception as error:
        options.fail(error)
    print(f"made a store of {store.n_models} models at {given.logdir} with {', '.join(store.keys)}")


if __name__ == "__main__":
    main()
