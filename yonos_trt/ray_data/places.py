"""Where pictures come from and go to: paths of this machine, and URIs through pyarrow's or fsspec's file
systems.

A URI names one file: ``s3://bucket/folder/photo.png?region=eu-west-1``. What stands behind ``?`` are options
of the file system (https://arrow.apache.org/docs: scheme, endpoint_override, region, ...); names with ``%``,
``?`` or ``#`` in them are percent-encoded. Credentials are the file system's own business: environment,
configuration, role of the machine.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from yonos_trt.cli.jobs import ADDRESS
from yonos_trt.errors import InputError, MissingExtraError, YonosError

T = TypeVar("T")

_PUT_IS_WHOLE = ("s3", "gcs", "abfs")  # an object is there when its upload is complete, and not before
_TRIES = 3  # pyarrow tries S3 some thirty times itself before it gives up once
_PAUSE_S = 0.25  # doubles
_DEFAULTS = {
    "s3": ("allow_delayed_open", "true"),  # one request for a small object, not three
    "gs": ("retry_limit_seconds", "10"),  # of each try; by itself it goes on for 15 minutes
    "gcs": ("retry_limit_seconds", "10"),
}
# What no second try mends, in the words of the file systems.
_REFUSED = (
    "ACCESS_DENIED",
    "AccessDenied",
    "INVALID_ACCESS_KEY_ID",
    "InvalidAccessKeyId",
    "SIGNATURE_DOES_NOT_MATCH",
    "SignatureDoesNotMatch",
    "HTTP status 403",
    "OAuth2 access token",
)
_NO_LIBRARY = ("libjvm", "libhdfs")  # Hadoop's, which pyarrow loads
_NO_BUCKET = ("NO_SUCH_BUCKET", "NoSuchBucket", "ucket does not exist")
_NO_FILE = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND", "HTTP status 404", "does not exist", "ot found")
_FINAL = (*_REFUSED, *_NO_BUCKET, *_NO_FILE, *_NO_LIBRARY)


# ---------------------------------------------------------------------------------------------------------
# Names

# names of files are bytes, of which Python makes text in this way
_encoded = partial(quote, errors="surrogateescape")
_decoded = partial(unquote, errors="surrogateescape")


def is_remote(name: str) -> bool:
    """Tell whether a name is a URI of another file system than this machine's own."""
    return bool(ADDRESS.match(name)) and not name.lower().startswith("file://")


def local(name: str) -> str:
    """Return the path that a name without address, or ``file:///path``, means.

    Raises
    ------
    InputError
        ``file://`` names another machine, or has ``#`` or ``?`` in it.
    """
    if not ADDRESS.match(name):
        return name
    parts = _split(name)
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{name}: names the machine {parts.netloc!r}; expected file:///PATH")
    if "?" in name:
        raise InputError(f"{name}: '?' is written %3F in the name of a file")
    return _decoded(parts.path)


def _split(uri: str) -> SplitResult:
    """Take a URI apart; what stands behind ``#`` would be lost, and another file taken."""
    if "#" in uri:
        raise InputError(f"{shown(uri.partition('#')[0])}#...: '#' is written %23 in a URI")
    return urlsplit(uri)


def _joined(parts: SplitResult, path: str, query: str) -> str:
    """Put a URI together; ``urlunsplit`` makes ``hdfs:/path``, which is a local one, of ``hdfs:///path``."""
    return f"{parts.scheme}://{parts.netloc}{path}{'?' * bool(query)}{query}"


def sendable(name: str) -> str:
    """Return a name of UTF-8, as Arrow wants it; a path of other bytes becomes ``file:///...``."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"file://{_encoded(name)}"
    return name


def below(top: str, relative: str) -> str:
    """Return the name of a file below a folder; ``relative`` has ``/`` and is not encoded."""
    if not is_remote(top):
        return str(Path(local(top)) / relative)
    parts = urlsplit(top)
    return _joined(parts, f"{parts.path.rstrip('/')}/{_encoded(relative)}", parts.query)


def shown(name: str) -> str:
    """Return a name as it may be printed: without options and user, which can hold secrets."""
    if not is_remote(name):
        return local(name)
    parts = urlsplit(name)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{_decoded(parts.path)}"


# ---------------------------------------------------------------------------------------------------------
# File systems


@cache
def _file_system(root: str) -> tuple[Any, str]:
    """Return the file system of a URI without path, and the path of its root there."""
    try:
        from pyarrow import ArrowInvalid, fs
    except ImportError as error:
        raise MissingExtraError(
            f"reading {shown(root)}", package="pyarrow", extra="ray", reason=str(error)
        ) from error
    try:
        return fs.FileSystem.from_uri(root)  # type: ignore[no-any-return]
    except ArrowInvalid as refused:
        try:
            from fsspec.core import url_to_fs

            other, path = url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{shown(root)}: no file system for this address (pyarrow: {_said(refused)}; fsspec: "
                f"{_said(error)}); install the fsspec package that has it, or name a folder"
            ) from error
        return fs.PyFileSystem(fs.FSSpecHandler(other)), str(path)


def _at(uri: str) -> tuple[Any, str]:
    """Return the file system of a URI and the path there."""
    parts = _split(uri)
    query = parts.query
    name, value = _DEFAULTS.get(parts.scheme, ("", ""))
    if name not in query:
        query = "&".join(filter(None, (query, f"{name}={value}")))
    with _told(uri):
        system, top = _file_system(_joined(parts, "/", query))
    return system, f"{top.rstrip('/')}/{_decoded(parts.path).strip('/')}".rstrip("/")


def list_below(top: str, *, recursive: bool, missing_ok: bool = False) -> Iterator[str]:
    """Yield the files below a remote folder, relative to it, sorted; folders end in ``/``. One listing, not
    one call a file.

    Raises
    ------
    InputError, YonosError
        There is no such bucket or folder (unless `missing_ok`), no right to list it, no connection.
    """
    from pyarrow.fs import FileSelector, FileType

    system, path = _at(top)

    def infos() -> Any:
        return system.get_file_info(FileSelector(path, recursive=recursive, allow_not_found=missing_ok))

    for info in sorted(_patiently(top, infos), key=lambda info: info.path):
        relative = info.path[len(path) :].removeprefix("/").rstrip("/")
        if relative and info.type != FileType.NotFound:
            yield relative + "/" * (info.type == FileType.Directory)


def exists_below(top: str) -> set[str]:
    """Return the names of all files below a remote folder, relative to it; none where it does not exist yet.

    Raises
    ------
    InputError, YonosError
        As `list_below`; a bucket that does not exist is one of them.
    """
    system, path = _at(top)
    bucket = path.split("/", 1)[0]
    if system.type_name in _PUT_IS_WHOLE:  # a missing folder is an empty one, a missing bucket is a slip
        from pyarrow.fs import FileType

        found = _patiently(top, lambda: system.get_file_info([bucket]))[0]
        if found.type == FileType.NotFound:
            raise InputError(f"{shown(top)}: there is no bucket {bucket!r}; make it first, or mend the name")
    return {name for name in list_below(top, recursive=True, missing_ok=True) if not name.endswith("/")}


def fetch(uri: str, target: Path) -> None:
    """Copy a remote file into a local one; tried again where the connection fails.

    Raises
    ------
    InputError, YonosError
        It is not there, may not be read, or the connection failed every time.
    """
    system, path = _at(uri)

    def read() -> None:
        with system.open_input_stream(path) as stream:
            target.write_bytes(stream.read())

    _patiently(uri, read)


def put(source: Path, uri: str) -> None:
    """Copy a local file to a remote name, where it appears whole or not at all; tried again as `fetch`.

    Object stores show an object when its upload is complete. Elsewhere a temporary name is renamed.
    """
    system, path = _at(uri)
    whole = system.type_name in _PUT_IS_WHOLE
    data = source.read_bytes()

    def write() -> None:
        name = path if whole else f"{path}.yonos-{secrets.token_hex(8)}.part"
        if not whole:
            system.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            stream = system.open_output_stream(name)
            stream.write(data)
            stream.close()
            if not whole:
                system.move(name, path)
        except BaseException:
            if not whole:
                with contextlib.suppress(OSError):
                    system.delete_file(name)
            raise

    _patiently(uri, write)


def remove(uri: str) -> None:
    """Remove a remote file, if it is there."""
    system, path = _at(uri)
    with contextlib.suppress(OSError):
        system.delete_file(path)


# ---------------------------------------------------------------------------------------------------------
# Errors


def _patiently(uri: str, call: Callable[[], T]) -> T:
    """Call, again after a pause where that may help."""
    with _told(uri):
        for attempt in range(1, _TRIES):
            try:
                return call()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError as error:
                if any(word in str(error) for word in _FINAL):
                    raise
                time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        return call()


@contextlib.contextmanager
def _told(uri: str) -> Iterator[None]:
    """Turn what a file system raises into one of our errors, which names the file and what to do."""
    try:
        yield
    except (YonosError, MemoryError):
        raise
    except Exception as error:
        said = _said(error)
        raise InputError(f"{shown(uri)}: {_remedy(said, error)} ({said})") from error


def _remedy(said: str, error: Exception) -> str:
    def has(*words: str) -> bool:
        return any(word in said for word in words)

    if has(*_NO_BUCKET):
        return "there is no such bucket; make it first, or mend the name"
    if has(*_REFUSED, "redentials"):
        return (
            "access is refused; check the credentials, on every node (for s3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, for gs GOOGLE_APPLICATION_CREDENTIALS)"
        )
    if has(*_NO_LIBRARY):
        return "HDFS needs Java and Hadoop's libhdfs, on every node; set JAVA_HOME, HADOOP_HOME and CLASSPATH"
    if isinstance(error, FileNotFoundError) or has(*_NO_FILE):
        return "not found; mend the name"
    if has("SLOW_DOWN", "SlowDown", "HTTP status 503", "HTTP status 429", "Throttl"):
        return f"the store took no request, {_TRIES} times; say it again later, or with fewer --workers"
    times = f" {_TRIES} times" if isinstance(error, OSError) else ""
    return f"the file system failed{times}; say it again"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) < 300 else f"{text[:300]}..."
