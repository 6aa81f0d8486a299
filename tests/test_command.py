"""Exit codes and messages of commands."""

import pytest

from storydist.command import ArgumentParser, positive_int, run_command


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
