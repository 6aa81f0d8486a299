"""Batch scripts with one fault each, and good ones: what is found, where, and what is not."""

import subprocess
import sys
from pathlib import Path

import pytest

from storydist.cluster.lint import lint
from storydist.cluster.script import read_script
from tests.test_commands import call, refused

HERE = Path(__file__).resolve().parent
BAD = sorted((HERE / "bad_templates").glob("*.sbatch"))
GOOD = sorted((HERE / "good_templates").glob("*.sbatch"))
SHIPPED = sorted((HERE.parent / "slurm").glob("train.sbatch"))
# Part of the line that each fault is told of; those about what is missing are told of the first #SBATCH line.
LINES = {
    "signal-without-b": "--signal",
    "b-without-trap": "--signal",
    "short-lead": "--signal",
    "late-trap": "trap '",
    "deaf-ranks": "trap '",
    "unclosed": "trap '",
    "requeue-in-trap": "trap '",
    "single-wait": "wait ",
    "set-e": "  wait ",
    "endless-requeue": "scontrol requeue",
    "unchecked-requeue": "scontrol requeue",
    "fixed-port": "MASTER_PORT",
    "shared-log": "--output",
    "ignored-directive": "--time",
    "variable-in-directive": "--job-name",
    "ranks-not-gpus": "--ntasks-per-node",
    "no-signal": "--job-name",
    "no-append": "--job-name",
    "no-requeue": "--job-name",
    "crlf": "#!/",
}


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_template_has_its_one_fault_found_in_its_line(path):
    (fault,) = lint(path)
    assert fault.rule == path.stem and fault.file == str(path)
    line = path.read_text().splitlines()[fault.line - 1]
    assert LINES.get(path.stem, "srun") in line
    assert fault.what and fault.why and fault.instead


@pytest.mark.parametrize("path", [*GOOD, *SHIPPED], ids=lambda path: path.stem)
def test_a_good_template_has_no_fault(path):
    assert lint(path) == []


def test_the_command_tells_faults_with_their_place_and_ends_with_1():
    done = call("launch/preflight.py", "--lint", HERE / "bad_templates" / "fixed-port.sbatch", GOOD[0])
    assert done.returncode == 1
    assert "fixed-port.sbatch:15: export MASTER_PORT=29500 [fixed-port]\n    a second job" in done.stdout
    assert "instead: MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))" in done.stdout
    assert done.stdout.endswith("2 script(s): 1 fault(s)\n")


def test_the_command_ends_with_0_where_nothing_is_found():
    done = call("launch/preflight.py", "--lint", *GOOD)
    assert (done.returncode, done.stdout) == (0, f"{len(GOOD)} script(s): no fault found\n")


def test_a_script_that_is_not_there_or_no_text_is_a_mistake(tmp_path):
    assert "No such file" in refused("launch/preflight.py", "--lint", tmp_path / "none.sbatch")
    (tmp_path / "binary").write_bytes(b"\x7fELF\xff")
    assert "no text" in refused("launch/preflight.py", "--lint", tmp_path / "binary")


def test_either_a_config_or_scripts_are_needed():
    assert "--config or --lint" in refused("launch/preflight.py")


def test_faults_of_a_file_that_is_sourced_are_told_of_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # jobs are submitted there
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "life.sh").write_text("begin() {\n  export MASTER_PORT=29500\n}\n")
    script = tmp_path / "slurm" / "train.sbatch"
    plain = (HERE / "good_templates" / "plain.sbatch").read_text()
    script.write_text(plain.replace("step=''", "source slurm/life.sh\nbegin\nstep=''"))
    (fault,) = lint(script)
    assert (fault.rule, fault.file, fault.line) == ("fixed-port", "slurm/life.sh", 2)


# The reading of scripts


def read(text: str) -> list[list[str]]:
    return [[word.text for word in command.words] for command in read_script(Path("s"), text).commands]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a 'b c' \"d $e\" f\\ g # h", [["a", "b c", "d $e", "f g"]]),
        ("a \\\n b; c && d", [["a", "b"], ["c"], ["d"]]),
        ("a 2>&1 >out <in &>both b &", [["a", "b"]]),
        ("a <<E\nnot this\nE\nb", [["a"], ["b"]]),
        ("x=(1 2) a=$(b c | d) e", [["x=(1 2)", "a=$(b c | d)", "e"]]),
        ("a ${b%%[!0-9]*} $((c * (d + 1)))", [["a", "${b%%[!0-9]*}", "$((c * (d + 1)))"]]),
        ("if a; then b; elif c; then d; else e; fi", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ('f() { a $1 "$@"; }\nb\nf x y', [["b"], ["f", "x", "y"], ["a", "x", "x", "y"]]),
        ("f() { f; }\nf", [["f"], ["f"]]),
    ],
)
def test_words_and_commands_are_those_of_bash(text, words):
    assert read(text) == words


def test_variables_count_only_where_this_shell_replaces_them():
    (command,) = read_script(Path("s"), 'a \'$B\' "$C" \\$D "\\$E" ${F:-x}').commands
    assert command.expands == {"C", "F"}


def test_conditions_loops_and_tests_are_known():
    text = "a\nif b; then c; fi\nwhile d; do e; done\nf || { g; }\nh"
    commands = {one.name: one for one in read_script(Path("s"), text).commands}
    assert {name for name, one in commands.items() if one.conditional} == {*"bcdeg"}
    assert {name for name, one in commands.items() if one.looped} == {*"de"}
    assert {name for name, one in commands.items() if one.tested} == {*"bdf"}


def test_options_are_read_in_every_spelling():
    text = "#!/bin/sh\n#SBATCH -N2 -c 4 --requeue\n#SBATCH --output x-%j  # a note\n #SBATCH --mem=1\necho\n"
    script = read_script(Path("s"), text)
    assert [(one.name, one.value) for one in script.directives] == [
        ("nodes", "2"),
        ("cpus-per-task", "4"),
        ("requeue", ""),
        ("output", "x-%j"),
    ]


def test_nothing_heavy_is_loaded_to_read_a_script():
    program = "import sys, storydist.cluster.lint; sys.exit(bool({'torch', 'scipy', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], cwd=HERE.parent).returncode == 0
