"""The one place where a command turns a user's mistake into a message."""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130  # what a shell reports after Ctrl-C


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, but a wrong argument is a ValueError, so that `run_command` reports it as it does any mistake."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def positive_int(text: str) -> int:
    """An argument that counts something, at least 1; for `type=`."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"needed a whole number of at least 1, found {text!r}")
    return int(text)


def run_command(main: Callable[[], int | None]) -> int:
    """Exit code of `main()`: its own (None counts as 0), or 2 after a ValueError or OSError.

    The message of such an error is printed on stderr as `error: ...`, without a traceback. Any other exception is a
    defect of the program and passes through with its traceback.
    """
    # Both have to be said before torch is loaded, so commands import torch inside `main`.
    # How long an idle OpenMP thread spins before it sleeps. The library's own 300,000 rounds cost several times the CPU
    # on cores shared with anyone else; with 1,000 every small operation waits for a thread to wake.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")
    # oneDNN keeps 1024 kernels, each for one shape; batches of stories hardly ever repeat theirs, so memory would grow
    # by some 300 MB in 100 steps for nothing.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    try:
        return main() or 0
    except BrokenPipeError:
        # The reader of our output (`| head`) has left; Python must not fail once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def end_with(main: Callable[[], int | None], several: bool) -> NoReturn:
    """Ends the process with `run_command`'s exit code; one of `several` ranks at once.

    While an interpreter ends, the threads and connections of libraries are taken apart, which has been seen to abort
    (torch 2.14, gloo); a scheduler then takes what was a clear exit code for a crash.
    """
    if not several:
        raise SystemExit(run_command(main))
    code = 1
    try:
        code = run_command(main)
    except SystemExit as asked:  # --help
        code = int(asked.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def message_of(error: ValueError | OSError) -> str:
    """What a user is told of an error."""
    told = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        told = f"{error.filename}: {error.strerror}"
    return "\n".join([told, *getattr(error, "__notes__", ())])
