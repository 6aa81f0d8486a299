"""What one rank does and all have to know."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from accelerate.utils import gather_object

from storydist.command import message_of


@contextmanager
def failing_together() -> Iterator[None]:
    """What goes wrong inside on one rank ends all of them: the others raise OSError with its message. Collective."""
    problem: str | None = "it ended with a defect, which its own output tells"
    try:
        yield
        problem = None
    except (ValueError, OSError) as error:
        problem = message_of(error)
        raise
    finally:
        problems = gather_object([problem])
    for rank, told in enumerate(problems):
        if told is not None:
            raise OSError(f"rank {rank}: {told}")


def require_equal(facts: Mapping[str, Any]) -> None:
    """Raises ValueError on every rank, naming what is not the same on all of them, and on which. Collective.

    Each node reads its own copy of settings and index: ranks that differ would wait for each other in different places,
    or train on different samples and not notice.
    """
    everyone = gather_object([dict(facts)])
    first = everyone[0]
    told = [
        f"{key} is {found.get(key)!r} on rank {rank}, {first.get(key)!r} on rank 0"
        for rank, found in enumerate(everyone)
        for key in sorted(first.keys() | found.keys())
        if found.get(key) != first.get(key)
    ]
    if told:
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        raise ValueError(f"the ranks begin with different settings or shards: {'; '.join(told[:5])}{more}")
