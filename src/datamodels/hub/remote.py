"""The calls to the Hub: each is tried again where that can help, and fails with one clear error.

The token is the one that ``huggingface_hub`` knows (``hf auth login``, or ``HF_TOKEN``); it is never looked at here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from datamodels.errors import RequestError, StoreError, first_line
from datamodels.version import __version__

_T = TypeVar("_T")
_PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before another try
_LONGEST_PAUSE = 60.0
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504}
_STALE = {409, 412}
_RACES = 100  # commits of others that may come first, before we give up
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN, with a token that may write"


class HubError(StoreError):
    """The Hub cannot be reached, or fails."""

    exit_status = 1


class StaleError(Exception):
    """Somebody else has committed since the head was read."""


@dataclass(frozen=True)
class Head:
    """The newest commit: its id, and per file a hash of the content (SHA-256 of large files, git's of others)."""

    sha: str
    files: Mapping[str, str]

    def has(self, path: str, content: bytes | Path) -> bool:
        """Whether a file is there with this content, or with that of a file here."""
        known = self.files.get(path, "")
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        digest = hashlib.sha256() if len(known) == 64 else hashlib.sha1(b"blob %d\0" % size)
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
            return hashlib.file_digest(file, lambda: digest).hexdigest() == known


class Repository:
    """A dataset on the Hub.

    Parameters
    ----------
    address
        ``hf://datasets/USER/NAME``.
    """

    def __init__(self, address: str) -> None:
        found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", address)
        if not found:
            raise RequestError(f"{address!r} is no dataset on the Hub; give hf://datasets/USER/NAME")
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise RequestError(f"{address!r} needs the extra 'hub': pip install 'datamodels-kit[hub]'") from None
        self.id = found[1]
        self.address = f"hf://datasets/{self.id}"
        self._api = HfApi(library_name="datamodels", library_version=__version__)
        self._where: dict[str, Any] = {"repo_id": self.id, "repo_type": "dataset"}

    def user(self) -> str:
        """Who is logged in."""
        return str(self._call(self._api.whoami)["name"])

    def head(self) -> Head:
        """The newest commit.

        Raises
        ------
        RequestError
            when there is no such dataset, or none that the user may see.
        """

        from huggingface_hub.hf_api import RepoFile

        def read() -> Head:
            sha = self._api.repo_info(**self._where).sha
            assert sha is not None
            entries = self._api.list_repo_tree(**self._where, revision=sha, recursive=True)
            files = [entry for entry in entries if isinstance(entry, RepoFile)]
            return Head(sha, {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files})

        return self._call(read)

    def ensure(self, *, private: bool) -> None:
        """Make the dataset if there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def make() -> None:
            try:
                self._api.repo_info(**self._where)
            except RepositoryNotFoundError as error:
                if error.response.status_code == 401:
                    raise
                self._api.create_repo(**self._where, private=private or None, exist_ok=True)

        self._call(make)

    def download(self, head: Head, path: str, folder: Path) -> Path:
        """Fetch a file into a folder; one that was fetched in part is gone on with."""
        return Path(
            self._call(
                lambda: self._api.hf_hub_download(**self._where, filename=path, revision=head.sha, local_dir=folder)
            )
        )

    def commit(
        self, head: Head, files: Mapping[str, bytes | Path], message: str, *, deleted: Sequence[str] = ()
    ) -> None:
        """Add and delete files in one commit on top of `head`: all of them, or none.

        Raises
        ------
        StaleError
            when `head` is not the newest commit any more. Nothing was changed then.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        def send() -> None:
            operations: list[Any] = [
                *(CommitOperationAdd(path, content) for path, content in files.items()),
                *(CommitOperationDelete(path) for path in deleted),
            ]
            self._api.create_commit(
                **self._where, operations=operations, commit_message=message, parent_commit=head.sha
            )

        self._call(send, stale=True)

    def racing(self, attempt: Callable[[Head], _T | None]) -> _T:
        """Do `attempt` on the newest commit until it returns something; again when it was overtaken by another's commit."""
        overtaken = 0
        while overtaken < _RACES:
            try:
                done = attempt(self.head())
            except StaleError:
                time.sleep(random.uniform(0, min(_PAUSES[0], 0.05 * 2 ** min(overtaken, 10))))
                overtaken += 1
                continue
            if done is not None:
                return done
            overtaken = 0
        raise HubError(f"others commit to {self.address} all the time; try again later: what was sent is kept")

    def _call(self, function: Callable[[], _T], *, stale: bool = False) -> _T:
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # that of httpx, whichever the library uses

        for pause in (*_PAUSES, None):
            try:
                return function()
            except (HTTPError, OSError, RuntimeError, ValueError) as error:
                cause = _cause(error)
                status = _status(cause)
                if stale and status in _STALE:
                    raise StaleError from None
                passing = status in _MAY_PASS or isinstance(cause, json.JSONDecodeError)
                lost = isinstance(cause, HTTPError) and status is None
                if pause is None or not (passing or lost):
                    raise self._clear(cause, status, lost=lost) from None
                time.sleep(max(pause * random.uniform(0.5, 1.0), _asked_to_wait(cause)))
        raise AssertionError

    def _clear(self, error: BaseException, status: int | None, *, lost: bool) -> Exception:
        """The error that a person can act on."""
        from huggingface_hub.errors import (
            GatedRepoError,
            LocalTokenNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        if isinstance(error, LocalTokenNotFoundError):
            return RequestError(f"nobody is logged in to the Hub, which {self.address} needs: {_LOGIN}")
        if isinstance(error, OfflineModeIsEnabled):
            return RequestError(f"cannot reach {self.address}: HF_HUB_OFFLINE is set; unset it")
        if isinstance(error, GatedRepoError):
            return RequestError(
                f"{self.address} is gated: ask for access on its page, with the account that is logged in"
            )
        if isinstance(error, RepositoryNotFoundError):
            return RequestError(
                f"there is no dataset {self.address}, or the account that is logged in may not see it; "
                "check its name, or `datamodels push` to it first"
            )
        if status == 401:
            return RequestError(f"the Hub does not know the token that is set for {self.address}: {_LOGIN}")
        if status == 403:
            return RequestError(
                f"the account that is logged in may not write to {self.address}: ask its owner, or push to a dataset of yours"
            )
        if lost:
            return HubError(f"cannot reach the Hub for {self.address}: {first_line(error)}; run it again to go on")
        if status is not None:
            return HubError(f"the Hub answered {status} for {self.address}: {first_line(error)}; run it again to go on")
        return HubError(f"{self.address}: {first_line(error)}")


@contextlib.contextmanager
def without_bars(quiet: bool) -> Iterator[None]:
    """Keep the library from drawing bars, unless the environment says that it shall."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if not quiet or constants.HF_HUB_DISABLE_PROGRESS_BARS is not None or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _cause(error: BaseException) -> BaseException:
    """What made the library fail, where it wraps it."""
    wraps = type(error) is RuntimeError or type(error).__name__ == "LocalEntryNotFoundError"
    return _cause(error.__cause__) if wraps and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    """The status of the answer, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


def _asked_to_wait(error: BaseException) -> float:
    """Seconds that the Hub asks to wait."""
    from huggingface_hub.errors import HfHubHTTPError

    text = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(text), _LONGEST_PAUSE) if text.isdigit() else 0.0
