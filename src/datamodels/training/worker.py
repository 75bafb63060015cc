"""``python -m datamodels.training.worker --worker.index=I --worker.main_import=PKG.MODULE --worker.logdir=DIR``

Runs ``PKG.MODULE.main(index=I, logdir=DIR/workers/I)`` and writes its dict to row I. Options of other
sections belong to the user's program: it finds them, and only them, in ``sys.argv``.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import os
import shlex
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from datamodels import options
from datamodels.errors import RequestError, RowError, first_line
from datamodels.store import Store

_GRACE = 2.0


class Worker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    index: Annotated[int, Field(description="row to fill")]
    main_import: Annotated[str, Field(min_length=1, description="module with main(index, logdir)")]
    logdir: Annotated[str, Field(min_length=1, description="folder of the store")]
    do_if_complete: Annotated[bool, Field(description="run also when the row is complete")] = False
    job_timeout: Annotated[float | None, Field(gt=0, description="seconds that main may take")] = None


_SECTIONS: dict[str, type[BaseModel]] = {"worker": Worker}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one training job and write its row."""
    command = list(sys.argv)
    argv = sys.argv[1:] if argv is None else argv
    ours = any(token.startswith(("--worker.", "-C", "--config-file")) for token in argv)
    if not ours and {"-h", "--help"} & set(argv):  # otherwise it may be the user's option
        print(options.help_text("datamodels.training.worker", main.__doc__ or "", _SECTIONS))
        return
    try:
        given = options.parse(argv, _SECTIONS, foreign=True)
        worker: Worker = options.build(given, _SECTIONS)["worker"]
        worker = worker.model_copy(update={"logdir": str(Path(worker.logdir).resolve())})  # main may change folder
        store = Store.open(worker.logdir)
        if not 0 <= worker.index < store.n_models:
            raise RequestError(f"--worker.index is {worker.index}; the store has rows 0..{store.n_models - 1}")
    except Exception as error:
        options.fail(error)
    if store.completed()[worker.index] and not worker.do_if_complete:
        print(f"row {worker.index} is complete already; --worker.do_if_complete runs it again")
        return
    sys.argv = [sys.argv[0], *given.foreign]
    values = _run(worker, given)
    try:
        store.write_row(worker.index, values, overwrite=worker.do_if_complete)
    except Exception as error:
        print(f"error: row {worker.index} was not written: {first_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    _record_command(Path(worker.logdir), command)


def _run(worker: Worker, given: options.Options) -> dict[str, Any]:
    """Call the user's main; every way to fail ends the process with a non-zero status."""
    if worker.job_timeout is not None:
        _limit(worker.job_timeout, worker.index)
    folder = Path(worker.logdir) / "workers" / str(worker.index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        function = _find_main(worker.main_import)
        if "fastargs" in sys.modules:
            _fill_fastargs(given, worker)
        values = function(index=worker.index, logdir=str(folder))
        if not isinstance(values, dict):
            raise RowError(f"main returned {type(values).__name__}; it must return a dict {{key: array}}")
    except RequestError as error:
        options.fail(error)
    except SystemExit as error:
        print(f"error: {worker.main_import} ended itself before it returned a row", file=sys.stderr)
        code = error.code if isinstance(error.code, int) else 1
        raise SystemExit(code if code & 0xFF else 1) from None
    except Exception as error:
        if not isinstance(error, RowError):
            traceback.print_exc()
        print(f"error: row {worker.index} was not written: {first_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        _finished.set()
    return values


def _find_main(name: str) -> Any:
    if not all(part.isidentifier() for part in name.split(".")):
        raise RequestError(f"--worker.main_import is {name!r}; give the name of a module, like PKG.MODULE")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise RequestError(
                f"--worker.main_import: there is no module {name!r} in {os.getcwd()} or installed"
            ) from None
        raise
    function = getattr(module, "main", None)
    if not callable(function):
        raise RequestError(f"--worker.main_import: module {name!r} has no function main(index, logdir)")
    return function


_finished = threading.Event()


def _limit(seconds: float, index: int) -> None:
    """End the process after some seconds, whatever it is doing.

    A thread says so in one line. Code that holds the interpreter lock cannot be interrupted by it, so
    `faulthandler`, which needs no lock, follows a little later.
    """

    def watch() -> None:
        if not _finished.wait(seconds):
            print(
                f"error: row {index} was not written: it took longer than {seconds:g} seconds",
                file=sys.stderr,
                flush=True,
            )
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    faulthandler.dump_traceback_later(seconds + _GRACE, exit=True)


def _fill_fastargs(given: options.Options, worker: Worker) -> None:
    """Fill the global configuration of a user's program that declares `fastargs` parameters.

    Declared parameters may import modules that declare more, so this repeats until nothing is new.
    """
    config = importlib.import_module("fastargs").get_current_config()
    known = -1
    while known != len(config.entries):
        known = len(config.entries)
        for file in given.config_files:
            config.collect_config_file(file)
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("-C", "--config-file", action="append")
        for path, parameter in config.entries.items():
            flag: dict[str, Any] = {"action": "store_true", "default": None} if parameter.is_flag else {}
            parser.add_argument(f"--{'.'.join(path)}", **flag)
        said = vars(parser.parse_known_args(given.foreign)[0])
        said.pop("config_file")
        config.collect({name: value for name, value in said.items() if value is not None})
        config.collect({f"worker.{name}": value for name, value in worker.model_dump().items()})
    for path, parameter in config.entries.items():  # a flag that nobody set is False, not missing
        if parameter.is_flag and path not in config.content:
            config.content[path] = False


def _record_command(folder: Path, command: list[str]) -> None:
    """Append the command line of a finished job; one write, so that lines of many workers never mix."""
    line = shlex.join(["python", "-m", "datamodels.training.worker", *command[1:]]) + "\n"
    fd = os.open(folder / "cmds.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


if __name__ == "__main__":
    main()
