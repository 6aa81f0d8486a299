"""What fails in fsspec's drivers, each of which raises its own: refused, not there, for good, or perhaps only now."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

# What drivers raise besides OSError; each is looked for only where its driver has loaded the module.
DRIVER_ERRORS = {
    "aiohttp": ("ClientError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "gcsfs.retry": ("HttpError", "ChecksumError"),
    "google.auth.exceptions": ("GoogleAuthError",),
    "googleapiclient.errors": ("HttpError",),
    "httpx": ("HTTPError",),
    "httpx2": ("HTTPError",),
}
PASSING_STATUS = {408, 425, 429}  # and 5xx


class PassingError(OSError):
    """A failure that may be gone at the next try. `answered`: the server refused, rather than the line failed."""

    answered = False


@contextmanager
def told(address: str) -> Iterator[None]:
    """Turns what a driver raises inside into one of these, naming the address.

    PassingError: a dropped connection, a timeout, a short answer (EOFError), 408, 425, 429, 5xx. PermissionError: 401,
    403, no credentials. FileNotFoundError: 404, 410. OSError: anything else that another try will not mend, such as a
    bad certificate.
    """
    try:
        yield
    except _driver_errors() as error:
        raise _judged(error, address) from error


def _driver_errors() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules[module], names) for module, names in DRIVER_ERRORS.items() if sys.modules.get(module)]
    return (OSError, EOFError, *(getattr(module, name) for module, names in loaded for name in names))


def _judged(error: Exception, address: str) -> OSError:
    # fsspec calls any failed look at a file "not found"; what really failed is then the cause.
    renamed = isinstance(error, FileNotFoundError) and isinstance(error.__cause__, _driver_errors())
    cause = error.__cause__ if renamed else error
    status = _status(error) or (_status(error.__cause__) if isinstance(error, OSError) else None)  # s3fs: the cause
    seen = f"HTTP status {status}" if status else f"{type(cause).__name__}: {cause}".rstrip(": ")
    throttled = status in PASSING_STATUS or (status == 403 and "ratelimit" in str(cause).lower())  # Google Drive
    refused = status in (401, 403) or isinstance(cause, PermissionError) or "Credentials" in type(cause).__name__
    if refused and not throttled:
        return PermissionError(f"{address}: access is refused ({seen}); see the credentials in docs/storage.md")
    if status in (404, 410) or isinstance(cause, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return FileNotFoundError(f"{address}: there is no such file")
    if isinstance(cause, ValueError) or (status and 400 <= status < 500 and not throttled):
        return OSError(f"{address}: {seen}")
    passing = PassingError(f"{address}: {seen}")
    passing.answered = status is not None
    return passing


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that an error of any driver carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = [getattr(error, name, None) for name in ("status", "status_code", "code")]
    return next((n for n in [*found, getattr(response, "status_code", None)] if isinstance(n, int)), None)
