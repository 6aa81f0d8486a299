"""What one rank does and all have to know."""

from collections.abc import Iterator
from contextlib import contextmanager

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
