"""Exit codes and messages of commands."""

import signal
import subprocess
import sys

import pytest

from storydist.command import ArgumentParser, positive_int, run_command
from tests.story_tables import ROOT


def raising(error: BaseException):
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1)])
def test_result_is_the_exit_code(result, code):
    assert run_command(lambda: result) == code


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("row 3: no score"), "error: row 3: no score\n"),
        (FileNotFoundError("x is missing"), "error: x is missing\n"),
        (PermissionError(13, "Permission denied", "/there"), "error: /there: Permission denied\n"),
    ],
)
def test_user_errors_are_one_line_and_code_2(error, message, capsys):
    assert run_command(raising(error)) == 2
    assert capsys.readouterr().err == message


def test_defects_keep_their_traceback():
    with pytest.raises(KeyError):
        run_command(raising(KeyError("defect")))


def test_interrupt():
    assert run_command(raising(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5", ""])
def test_wrong_arguments_are_value_errors(text):
    parser = ArgumentParser(prog="it")
    parser.add_argument("--workers", type=positive_int)
    assert parser.parse_args(["--workers", "3"]).workers == 3
    with pytest.raises(ValueError, match="--workers"):
        parser.parse_args([f"--workers={text}"])


END = """
import atexit, os
from storydist.command import ArgumentParser, end_with
atexit.register(os.abort)
def main():
    print("said", end="")
    {body}
end_with(main, several={several})
"""


def ended(body: str, several: bool) -> subprocess.CompletedProcess[str]:
    program = END.format(body=body, several=several)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("return 75", 75, ""),
        ("return None", 0, ""),
        ("raise ValueError('a mistake')", 2, "error: a mistake\n"),
        ("raise KeyError('a defect')", 1, "KeyError: 'a defect'\n"),
        ("ArgumentParser(prog='p').parse_args(['--help'])", 0, ""),
    ],
)
def test_how_an_interpreter_ends_is_nothing_to_one_of_several_ranks(body, code, told):
    done = ended(body, several=True)
    assert done.returncode == code and done.stderr.endswith(told)
    assert done.stdout.startswith("said")


def test_a_single_process_ends_as_any_other():
    assert ended("return 75", several=False).returncode == -signal.SIGABRT
