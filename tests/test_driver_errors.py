"""How failures are told apart, for drivers that the tests have no server for."""

import pytest

from storydist.data.driver_errors import PassingError, told


class _DriverError(OSError):
    """As a driver's error, with the HTTP status where that driver keeps it."""

    def __init__(self, text: str = "", **kept: object):
        super().__init__(text)
        self.__dict__.update(kept)


class _Response:
    def __init__(self, status_code: int):
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "kind", "answered"),
    [
        (_DriverError(status=503), PassingError, True),
        (_DriverError(code=429), PassingError, True),
        (_DriverError(response=_Response(502)), PassingError, True),
        (_DriverError(response={"ResponseMetadata": {"HTTPStatusCode": 500}}), PassingError, True),
        (_DriverError("Details: userRateLimitExceeded", status_code=403), PassingError, True),
        (_DriverError(status=403), PermissionError, None),
        (_DriverError(status=401), PermissionError, None),
        (_DriverError(status=404), FileNotFoundError, None),
        (_DriverError(status=416), OSError, None),
        (PermissionError("no"), PermissionError, None),
        (FileNotFoundError("no"), FileNotFoundError, None),
        (IsADirectoryError("no"), FileNotFoundError, None),
        (ConnectionResetError("gone"), PassingError, False),
        (TimeoutError(), PassingError, False),
        (EOFError("3 of 4 bytes"), PassingError, False),
    ],
)
def test_kinds(error, kind, answered):
    with pytest.raises(OSError, match=r"^s3://b/k: ") as found, told("s3://b/k"):
        raise error
    assert type(found.value) is kind and getattr(found.value, "answered", None) == answered


def test_what_fsspec_calls_not_found_is_what_it_really_was():
    with pytest.raises(PassingError, match=r"^https://h/x: HTTP status 503$"), told("https://h/x"):
        raise FileNotFoundError("https://h/x") from _DriverError(status=503)


def test_our_own_defects_pass_through():
    with pytest.raises(KeyError), told("https://h/x"):
        raise KeyError("defect")
