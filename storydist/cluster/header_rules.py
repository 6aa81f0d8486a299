"""What is wrong with the #SBATCH lines of a script; sources: sbatch(1) of Slurm 22.05 to 25.05."""

import re
from collections.abc import Callable, Iterator

from storydist.cluster.fault import Fault, lead_s, training_step
from storydist.cluster.script import DIRECTIVE, Directive, Script
from storydist.cluster.slurm import RESOLUTION_S

LAUNCHERS = ("torchrun", "accelerate", "torch.distributed.run", "accelerate.commands.launch")


def carriage_returns(script: Script) -> Iterator[Fault]:
    lines = [number for number, line in enumerate(script.text.split("\n"), 1) if line.endswith("\r")]
    if lines:
        yield Fault(
            "crlf",
            script.path,
            lines[0],
            f"{len(lines)} line(s) end with a carriage return",
            "sbatch refuses a script with DOS line breaks",
            "convert it: sed -i 's/\\r$//' FILE",
        )


def ignored(script: Script) -> Iterator[Fault]:
    """Directives behind the first command."""
    for directive in script.directives:
        if directive.line > script.first_command:
            yield _fault(
                script,
                "ignored-directive",
                directive,
                "Slurm stops reading #SBATCH at the first command, and says nothing about the rest",
                f"move it above line {script.first_command}",
            )


def variables(script: Script) -> Iterator[Fault]:
    for number, line in enumerate(script.text.split("\n"), 1):
        if line.startswith(DIRECTIVE) and re.search(r"\$[A-Za-z_{(]", line.split(" #")[0]):
            yield Fault(
                "variable-in-directive",
                script.path,
                number,
                line.strip(),
                "no shell reads #SBATCH lines, so the variable stands there as its name",
                "write the value; or give it on the command line: sbatch --output=... ; %j and %x are Slurm's own",
            )


def no_signal(script: Script) -> Iterator[Fault]:
    trains = any("train.py" in word for command in script.commands for word in command.own_words)
    if trains and script.option("signal") is None:  # others have nothing to save
        yield _missing(
            script,
            "no-signal",
            "no --signal",
            "at the time limit TERM comes and KILL 30 s later (KillWait): too late to save anything large",
            "#SBATCH --signal=B:USR1@300, and a trap that hands it on",
        )


def short_lead(script: Script) -> Iterator[Fault]:
    found, seconds = script.option("signal"), lead_s(script)
    if found and seconds is not None and seconds <= RESOLUTION_S:
        yield _fault(
            script,
            "short-lead",
            found,
            f"Slurm may send it up to {RESOLUTION_S} s late or early, so of {seconds} s nothing may be left",
            "@ as many seconds as a step and a save take, and 60 more: @300",
        )


def append(script: Script) -> Iterator[Fault]:
    found = script.option("open-mode")
    if found is None or found.value != "append":
        yield _missing(
            script,
            "no-append",
            "no --open-mode=append" if found is None else f"--open-mode={found.value}",
            "a requeued job opens its log anew, and what the life before had said is lost",
            "#SBATCH --open-mode=append",
            found,
        )


def requeue(script: Script) -> Iterator[Fault]:
    found = script.option("no-requeue")
    if found or script.option("requeue") is None:
        yield _missing(
            script,
            "no-requeue",
            "--no-requeue" if found else "no --requeue",
            "whether Slurm requeues a job after preemption or a lost node is then the site's choice (JobRequeue)",
            "#SBATCH --requeue",
            found,
        )


def output(script: Script) -> Iterator[Fault]:
    for name in ("output", "error"):
        found = script.option(name)
        number = ("%A", "%j", "%J") if script.option("array") else ("%j", "%J", "%A")
        if found and found.value != "/dev/null" and not any(part in found.value for part in number):
            yield _fault(
                script,
                "shared-log",
                found,
                "all jobs of this script write into one file, over or between each other",
                f"#SBATCH --{name}=%x-%j.log",
            )


def ranks_and_gpus(script: Script) -> Iterator[Fault]:
    tasks, gpus = script.option("ntasks-per-node"), _gpus(script)
    step = training_step(script)
    launched = step is not None and any(word in LAUNCHERS for word in step.words)
    if tasks and gpus and not launched and tasks.value.isdecimal() and int(tasks.value) != gpus[1]:
        yield _fault(
            script,
            "ranks-not-gpus",
            tasks,
            f"a rank takes one GPU, and line {gpus[0].line} asks for {gpus[1]} a node: some stay idle, or ranks share",
            f"#SBATCH --ntasks-per-node={gpus[1]}",
        )


def _gpus(script: Script) -> tuple[Directive, int] | None:
    """The directive that asks for GPUs of each node, and how many; None for none, or 0."""
    for name in ("gpus-per-node", "gres"):
        found = script.option(name)
        if found and (name == "gpus-per-node" or found.value.startswith("gpu")):
            count = found.value.rpartition(":")[2]
            number = int(count) if count.isdecimal() else 1
            return (found, number) if number else None
    return None


def _fault(script: Script, rule: str, directive: Directive, why: str, instead: str) -> Fault:
    value = f"={directive.value}" if directive.value else ""
    return Fault(rule, script.path, directive.line, f"#SBATCH --{directive.name}{value}", why, instead)


def _missing(script: Script, rule: str, what: str, why: str, instead: str, directive: Directive | None = None) -> Fault:
    line = directive.line if directive else next((one.line for one in script.directives), 1)
    return Fault(rule, script.path, line, what, why, instead)


HEADER_RULES: tuple[Callable[[Script], Iterator[Fault]], ...] = (
    carriage_returns,
    ignored,
    variables,
    no_signal,
    short_lead,
    append,
    requeue,
    output,
    ranks_and_gpus,
)
