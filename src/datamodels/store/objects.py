"""Objects at an address: read, created once, replaced when they are still what was read; with retries.

Every backend of obstore can do the same four things, so a store's protocol is written once. What a local folder lacks, replacing
on condition, is done under a lock on a file beside the objects.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from datamodels.errors import RequestError, StoreError, WriteError, first_line
from datamodels.progress import note

_PATIENCE = 120.0  # seconds that one operation is tried again for
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_SILENCE = 5.0  # seconds after which somebody who waits is told
_LOCK = ".lock"
_T = TypeVar("_T")
_memory: dict[str, Any] = {}


class Changed(Exception):
    """An object is not what it was when it was read, or exists already."""


class Objects:
    """The objects under an address.

    Parameters
    ----------
    address
        ``s3://bucket/path``, ``gs://bucket/path``, ``az://container/path``, ``file:///folder`` or, for one process,
        ``memory://name``. Credentials and endpoints come from the environment (``AWS_ENDPOINT_URL``, ``AWS_ALLOW_HTTP``, ...),
        never from the address.
    make
        Whether a folder of ``file://`` is made.
    """

    def __init__(self, address: str, *, make: bool = False) -> None:
        self.address = address.rstrip("/")
        self._folder: Path | None = None
        self.store = self._opened(make)

    def _opened(self, make: bool) -> Any:
        try:
            from obstore.store import LocalStore, MemoryStore, from_url
        except ImportError:
            raise RequestError(
                f"{self.address!r} needs the extra 'cloud': pip install 'datamodels-kit[cloud]'"
            ) from None
        parts = urlsplit(self.address)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise RequestError(
                f"the address of a store at {parts.scheme}://{parts.hostname} must be SCHEME://BUCKET/PATH; give credentials "
                "and endpoints in the environment (as AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL)"
            )
        if any(part in (".", "..") for part in unquote(parts.path).split("/")):
            raise RequestError(f"{self.address!r} has '.' or '..' in its path; give the path itself")
        if parts.scheme == "memory":
            return _memory.setdefault(self.address, MemoryStore())
        if parts.scheme == "file":
            if parts.netloc or not parts.path.strip("/"):
                raise RequestError(f"{self.address!r} names no folder; give file:///FOLDER, with three slashes")
            self._folder = Path(unquote(parts.path))
            if make:
                self._folder.mkdir(parents=True, exist_ok=True)
            elif not self._folder.is_dir():
                raise FileNotFoundError(str(self._folder))
            return LocalStore(self._folder)
        if not parts.netloc or not parts.path.strip("/"):
            raise RequestError(f"{self.address!r} is incomplete; give {parts.scheme}://BUCKET/PATH")
        try:
            return from_url(
                self.address,
                client_options={
                    "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true"),
                    "timeout": "60s",
                    "connect_timeout": "10s",
                },
                retry_config={"max_retries": 3, "retry_timeout": _seconds(30)},
            )
        except Exception as error:
            raise RequestError(f"cannot use {self.address!r}: {first_line(error)}") from None

    # -- the four operations ------------------------------------------------------------------------

    def read(self, name: str) -> tuple[bytes, Any] | None:
        """An object's bytes and the tag that says which version they are, or None when it does not exist."""

        def once() -> tuple[bytes, Any] | None:
            import obstore

            try:
                found = obstore.get(self.store, name)
                return bytes(found.bytes()), found.meta
            except FileNotFoundError:
                return None

        return self.persist(once, "read", name)

    def create(self, name: str, data: bytes | memoryview) -> Any:
        """Write an object that does not exist. Returns its tag.

        Raises
        ------
        Changed
            when it exists with other bytes. Equal bytes are taken for one's own: an answer that was lost is tried again.
        """

        def once() -> Any:
            import obstore
            from obstore.exceptions import AlreadyExistsError, PreconditionError

            try:
                return obstore.put(self.store, name, data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileExistsError):
                return self._lost_answer(name, data)

        return self.persist(once, "create", name)

    def replace(self, name: str, data: bytes | memoryview, tag: Any) -> Any:
        """Write an object that is still the version of `tag`; of None: that does not exist. Returns its new tag.

        Raises
        ------
        Changed
            when it is another version by now.
        """
        if tag is None:
            return self.create(name, data)

        def once() -> Any:
            import obstore
            from obstore.exceptions import AlreadyExistsError, PreconditionError

            condition: Any = {key: tag[key] for key in ("e_tag", "version") if tag.get(key) is not None}
            try:
                with self._alone():
                    if self._folder is None:
                        return obstore.put(self.store, name, data, mode=condition, use_multipart=False)
                    now = self.read(name)
                    if now is None or now[1]["e_tag"] != tag["e_tag"]:
                        raise PreconditionError("changed")
                    return obstore.put(self.store, name, data, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError):
                return self._lost_answer(name, data)

        return self.persist(once, "replace", name)

    def _lost_answer(self, name: str, data: bytes | memoryview) -> Any:
        """The tag of an object that could not be written, when it holds what was to be written all the same."""
        there = self.read(name)
        if there is None or there[0] != data:
            raise Changed(name) from None
        return there[1]

    def put(self, name: str, data: bytes | memoryview) -> None:
        """Write an object, whether it exists or not."""

        def once() -> None:
            import obstore

            obstore.put(self.store, name, data, use_multipart=False)

        self.persist(once, "write", name)

    def names(self, prefix: str) -> list[str]:
        """Names that start with a folder's name, sorted."""

        def once() -> list[str]:
            import obstore

            return sorted(item["path"] for batch in obstore.list(self.store, prefix) for item in batch)

        return self.persist(once, "list", prefix)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else replaces objects of a local folder."""
        if self._folder is None:
            yield
            return
        fd = os.open(self._folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def persist(self, once: Callable[[], _T], what: str, name: str) -> _T:
        """Do it, and again with growing pauses while the service fails.

        Parameters
        ----------
        what
            ``read``, ``list``, or what else is done to the object `name`; for the message.

        Raises
        ------
        StoreError
            when the service still fails after two minutes, or refuses; a WriteError when it was no reading.
        """
        started, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            try:
                return once()
            except (Changed, StoreError):
                raise
            except Exception as error:
                waited = time.monotonic() - started
                hint = _hint(error)
                if hint or type(error).__name__ in _FINAL or isinstance(error, PermissionError):
                    tried = ""
                elif waited + pause > _PATIENCE:
                    tried = f"; tried for {waited:.0f} seconds"
                else:
                    if waited > _SILENCE and not told:
                        note(f"{self.address} does not answer ({_said(error)}); trying for {_PATIENCE:.0f} seconds")
                        told = True
                    time.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    continue
                kind = StoreError if what in ("read", "list") else WriteError
                raise kind(f"cannot {what} {name!r} at {self.address!r}: {hint or _said(error)}{tried}") from None


_FINAL = (
    "PermissionDeniedError",
    "UnauthenticatedError",
    "InvalidPathError",
    "NotSupportedError",
    "UnknownConfigurationKeyError",
)


def _hint(error: Exception) -> str:
    """What to do about an error that trying again cannot mend; empty for others."""
    if isinstance(error, FileNotFoundError):  # an object that is not there is no error where this is asked
        return "there is no such bucket, or it is in another region: look at its name, and at AWS_REGION"
    if "169.254.169.254" in str(error):  # where machines of the cloud ask who they are
        return "no credentials were found: give them in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    return ""


def _said(error: Exception) -> str:
    """What an error of the service says, in one line of reasonable length: no headers, no dumps."""
    line = first_line(error)
    return line if len(line) <= 300 else line[:297] + "..."


def _seconds(count: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=count)
