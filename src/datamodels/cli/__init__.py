"""The command line: each command parses, calls one function, and prints.

Results go to standard output, as one JSON object with ``--json``; progress and messages go to standard
error. Exit status: 0 done, 1 ran and something failed, 2 the request was wrong.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from datamodels.cli import cluster, explore, fits, hub, looking, pilot, run, selecting, stores, trak, validating
from datamodels.errors import DatamodelsError, first_line
from datamodels.version import __version__

app = typer.Typer(
    name="datamodels",
    help="Which training examples made the model do that? Answered by retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Typer brings its own copy of click's exceptions in some releases; their base is reached through it.
_UsageProblem: Any = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130  # what typer makes of Ctrl-C

for _command in (
    stores.init, stores.train, stores.status, stores.verify, stores.extend, stores.merge, stores.sync,
    hub.push, hub.pull, hub.claim,
    cluster.sbatch, cluster.share,
    pilot.pilot, trak.trak,
    fits.fit, fits.evaluate, fits.curve, fits.calibrate,
    selecting.select, selecting.stability, selecting.intervals,
    looking.neighbours, looking.subgroups, explore.report, explore.explore, run.run, looking.demo, validating.validate,
):  # fmt: skip
    app.command()(_command)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None: ...


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """The ``datamodels`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    warnings.showwarning = _show_warning
    try:
        status = app(arguments, prog_name="datamodels", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except _UsageProblem as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        status = 2
    except Exception as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, DatamodelsError | ValueError | IndexError)
        hint = "" if known else " (--debug shows the traceback)"
        print(f"error: {first_line(error)}{hint}", file=sys.stderr)
        status = error.exit_status if isinstance(error, DatamodelsError) else 2 if known else 1
    if status == _INTERRUPTED:
        print("stopped; what is complete is kept, run it again to go on", file=sys.stderr)
        status = 1
    sys.exit(status or 0)
