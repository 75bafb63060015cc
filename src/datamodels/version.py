"""The version of the package, and of the packages that results depend on."""

from __future__ import annotations

__version__ = "1.0.0rc1"
"""The version of this package, by semantic versioning: the changelog says what changed."""


def versions() -> dict[str, str]:
    """Versions that a store or a result file records as provenance.

    Read from package metadata, so nothing heavy is imported.
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    found = {"datamodels": __version__, "python": platform.python_version()}
    for name in ("numpy", "scipy", "numba", "scikit-learn", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
