"""The connection to a Ray cluster, and what the cluster has."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from datamodels.errors import RequestError, first_line
from datamodels.executors.base import usable_cpus

_CLIENT = "ray://"
_ANSWER = 10.0  # seconds


@contextlib.contextmanager
def connected(address: str | None, runtime_env: Mapping[str, Any] | None) -> Iterator[None]:
    """Be connected to Ray: as the process is already, or for as long as this lasts.

    Raises
    ------
    RequestError
        when Ray is not installed, nothing answers at the address, or the process is connected to another cluster.
    """
    try:
        import ray
    except ImportError:
        raise RequestError("executor 'ray' needs Ray: pip install 'datamodels-kit[ray]'") from None
    if ray.is_initialized():
        _check_same(address, runtime_env)
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("auto", "local"):
        _check_answers(address)
    options: dict[str, Any] = {"runtime_env": dict(runtime_env)} if runtime_env else {}
    if address == "local":
        options |= {"num_cpus": usable_cpus(), "include_dashboard": False}
    with _nothing_on_standard_output():
        try:
            ray.init(address=address, logging_level=logging.WARNING, **options)
        except Exception as error:
            raise RequestError(f"cannot use Ray at {address!r}: {first_line(error)}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def _nothing_on_standard_output() -> Iterator[None]:
    """What Ray brings from processes of the cluster is printed to standard error, all of it."""
    try:
        from ray._private.ray_logging import global_worker_stdstream_dispatcher as lines
    except ImportError:  # another version of Ray, which prints what comes from standard output there
        yield
        return
    name = "datamodels"
    lines.add_handler(name, lambda data: data.update(is_err=True))  # before Ray's own, which prints
    try:
        yield
    finally:
        lines.remove_handler(name)


def _check_same(address: str | None, runtime_env: Mapping[str, Any] | None) -> None:
    import ray

    if runtime_env:
        raise RequestError("this process is connected to Ray already: give runtime_env to ray.init")
    if address in (None, "auto") or str(address).startswith(_CLIENT):
        return
    there = ray.get_runtime_context().gcs_address
    if address != there:
        raise RequestError(f"this process is connected to Ray at {there}, not {address!r}: call ray.shutdown() first")


def _check_answers(address: str) -> None:
    """Ray itself would wait for minutes, and then end the process."""
    host, colon, port = address.removeprefix(_CLIENT).partition("/")[0].rpartition(":")
    if not colon or not port.isdecimal():
        raise RequestError(
            f"address is {address!r}; give 'HOST:PORT', 'ray://HOST:PORT', or 'auto' on a node of the cluster"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise RequestError(f"nothing answers at the Ray address {address!r}: {first_line(error)}") from None


def places(need: Mapping[str, float]) -> int:
    """How many workers that need this much each fit on the nodes that live, if nobody else used them."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(int(min(node.get(name, 0) / amount for name, amount in need.items())) for node in nodes)


def no_place(need: Mapping[str, float]) -> str:
    """Why a worker cannot be placed."""
    import ray

    have = ray.cluster_resources()
    asked = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    there = ", ".join(f"{have.get(name, 0):g} {name}" for name in need)
    return f"a worker needs {asked}, and no node of the Ray cluster has that to give (all together: {there})"


def reason(error: BaseException) -> str:
    """What an error of Ray says was the cause, in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    because = "The actor is dead because "
    said = next((line for line in lines if line.startswith(because)), (lines or [type(error).__name__])[0])
    return said.removeprefix(because).partition(". ")[0].rstrip(".")
