"""Where a shard set may lie: a folder, or an address that fsspec has a driver for; and which names its files may have.

An index is read before anything else is known of it, so the names in it are taken for hostile.
"""

import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

# No other protocol is handed to fsspec: some of its own take further addresses out of what they open (reference, dir,
# zip, the caches, of which some unpickle), or run a program (git, dask).
PROTOCOLS = (
    *("http", "https", "s3", "s3a", "gs", "gcs", "hf", "gdrive"),
    *("abfs", "az", "ftp", "hdfs", "oci", "oss", "sftp", "webdav"),
)
_FILE = "file://"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_PLAIN = re.compile(r"[:\\\x00-\x1f\x7f]")


def is_remote(location: str | Path) -> bool:
    """Whether this is an address, to be read through the cache, and no folder of this node."""
    return isinstance(location, str) and "://" in location and not location.startswith(_FILE)


def local_folder(location: str | Path) -> Path:
    """The folder that a path or a file:// address names. Raises ValueError when the address names a host."""
    if not (isinstance(location, str) and location.startswith(_FILE)):
        return Path(location)
    path = location.removeprefix(_FILE)
    if not path.startswith("/") or "::" in path:
        raise ValueError(
            f"{location}: a file:// address has three slashes and no host, for example file:///data/shards"
        )
    return Path(unquote(path))


def absolute(location: str) -> str:
    """The same place, whatever the working directory will be. Errors as `local_folder`."""
    return location if is_remote(location) else str(local_folder(location).resolve())


def protocol_of(address: str) -> str:
    """The protocol of an address that may be read. Raises ValueError for chained addresses and for other protocols."""
    protocol, _, rest = address.partition("://")
    if "::" in address:
        raise ValueError(f"{shown(address)}: chained addresses (`::`) are not read; give the plain address of the set")
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"{shown(address)}: shards are not read from {protocol}://; needed is a folder or one of "
            f"{', '.join(PROTOCOLS)}"
        )
    if not rest.strip("/"):
        raise ValueError(f"{address}: names no host, bucket or repository")
    return protocol


def join(address: str, name: str) -> str:
    """The address of a file of the set. A query (the key of a shared folder) stays at the end."""
    if protocol_of(address) not in ("http", "https"):
        return f"{address.rstrip('/')}/{name}"
    parts = urlsplit(address)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}", fragment="").geturl()


def shown(address: str) -> str:
    """An address as messages may show it: without password and query."""
    protocol, _, rest = address.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def is_plain(name: str) -> bool:
    """Whether a file of a set may have this name: below its folder, and nothing that a shell or driver acts on."""
    parts = name.split("/")
    return not _NOT_PLAIN.search(name) and all(part and not part.startswith(".") for part in parts)


def check_file(index: str | Path, name: str, sha256: str, size_bytes: int = 0) -> None:
    """Raises ValueError unless an index names this file by a plain path below its folder and by a SHA-256."""
    if not is_plain(name):
        raise ValueError(
            f"{index}: names a file {name!r}; needed are names below the set's own folder, without '..', a leading "
            "dot, colon or backslash. No set of this program has others: do not trust this one"
        )
    if not _SHA256.fullmatch(sha256) or size_bytes < 0:
        raise ValueError(f"{index}: {name} has SHA-256 {sha256!r} and {size_bytes} bytes; build the shards again")
