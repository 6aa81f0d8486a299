"""Finds faults in batch scripts without running them: what Slurm or bash would do otherwise than was meant.

Each rule is one function from a script to faults; those of #SBATCH lines are in header_rules.py, those of commands in
command_rules.py. What each is about, and why, is told with the fault.
"""

from pathlib import Path

from storydist.cluster.command_rules import COMMAND_RULES
from storydist.cluster.fault import Fault
from storydist.cluster.header_rules import HEADER_RULES
from storydist.cluster.script import read_script


def lint(path: Path) -> list[Fault]:
    """The faults of a batch script, in the order of its lines, each once. Files that it sources are looked for in the
    working directory, where jobs are submitted, and beside the script's folder.

    Raises OSError when it cannot be read, ValueError when it is no text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8 (byte {error.start})") from None
    script = read_script(path, text, (Path(), path.parent.parent, path.parent))
    if script.problem:
        line, what = script.problem
        told = "bash reads on to the end of the file and then refuses all of it"
        return [Fault("unclosed", str(path), line, what, told, "close it")]
    found = {
        (fault.rule, fault.file, fault.line): fault
        for rule in (*HEADER_RULES, *COMMAND_RULES)
        for fault in rule(script)
    }
    return sorted(found.values(), key=lambda fault: (fault.file != script.path, fault.file, fault.line))
