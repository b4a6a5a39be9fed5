"""Where converted models are kept, and what is done where nothing can be written there."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from forerun import _core
from forerun.errors import CheckpointError, InvalidArgumentError

_LOGGER = logging.getLogger("forerun")
_VARIABLE = "FORERUN_CACHE"
_PACKED_VARIABLE = "FORERUN_PACKED_CACHE_GB"
_PACKED_GIGABYTES = "32"
_MOST_GIGABYTES = 1_000_000
# A read-only cache is not a mistake of the user's.
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def cache_directory() -> Path | None:
    """$FORERUN_CACHE, else `forerun` in the user's cache; None for a user without a home."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    given = os.environ.get(_VARIABLE)
    try:
        path = Path(given).expanduser() if given else Path(home).expanduser() / "forerun"
    except RuntimeError:
        path = Path()
    if given and path == Path():
        raise InvalidArgumentError(_VARIABLE, given, "a directory; there is no such home directory")
    return path if given or path.is_absolute() else None


def weight_cache() -> _core.WeightCacheOptions:
    """Where packed weights are kept, and how many bytes of them: $FORERUN_PACKED_CACHE_GB.

    Raises:
        InvalidArgumentError: the variable is no number of gigabytes.
    """
    value = os.environ.get(_PACKED_VARIABLE) or _PACKED_GIGABYTES
    try:
        gigabytes = float(value)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes <= _MOST_GIGABYTES:
        raise InvalidArgumentError(
            _PACKED_VARIABLE, value, f"gigabytes from 0, which keeps nothing, to {_MOST_GIGABYTES}"
        )
    try:
        cache = cache_directory()
    except InvalidArgumentError:  # no reason not to load a model
        cache = None
    directory = "" if cache is None else str(cache / "packed")
    return _core.WeightCacheOptions(directory, int(gigabytes * 1e9))


@functools.cache
def warn_of_weight_cache(problem: str) -> None:
    """Logs once why packed weights could not be kept."""
    _LOGGER.warning("packed weights for the next start were %s", problem)


def cached(name: str, write: Callable[[Path], object]) -> Path:
    """The directory `name` of the cache.

    Args:
        write: makes that directory, whole or not at all, where it is missing. What it raises
            but for OSErrors passes through.

    Raises:
        InvalidArgumentError: the cache cannot hold it; the message names the variable.
    """
    cache = cache_directory()
    if cache is None:
        return _temporary(name, write, "the user has no home directory")
    target = cache / name
    try:
        if not _is_whole(target):
            write(target)
    except CheckpointError:
        raise
    except (OSError, InvalidArgumentError) as error:
        # Another process may have written the same meanwhile.
        if _is_whole(target):
            return target
        if isinstance(error, OSError) and error.errno in _READ_ONLY:
            return _temporary(name, write, f"{cache} cannot be written: {error.strerror}")
        raise _unusable(cache, error) from error
    return target


def _is_whole(directory: Path) -> bool:
    try:
        return (directory / "config.json").is_file()
    except OSError:
        return False


def _unusable(cache: Path | str, error: Exception) -> InvalidArgumentError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return InvalidArgumentError(
        _VARIABLE, str(cache), f"a directory with room for a converted model ({reason})"
    )


_TEMPORARY: dict[str, Path] = {}


def _temporary(name: str, write: Callable[[Path], object], reason: str) -> Path:
    """A directory that is removed when the process ends."""
    if (known := _TEMPORARY.get(name)) is not None and _is_whole(known):
        return known
    import atexit
    import tempfile

    try:
        root = Path(tempfile.mkdtemp(prefix="forerun-"))
        atexit.register(functools.partial(_remove, root, os.getpid()))
        write(root / name)
    except OSError as error:
        raise _unusable(f"{reason}; nor can {tempfile.gettempdir()}", error) from error
    _LOGGER.warning(
        "%s: %s; the model is converted into %s, which is removed at exit", _VARIABLE, reason, root
    )
    _TEMPORARY[name] = root / name
    return root / name


def _remove(directory: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a forked child
        import shutil

        shutil.rmtree(directory, ignore_errors=True)
