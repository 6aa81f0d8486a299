"""What is wrong with the commands of a batch script: who hears the signal, which exit code is left, who requeues."""

import re
from collections.abc import Callable, Iterator

from storydist.cluster.fault import Fault, training_step
from storydist.cluster.header_rules import LAUNCHERS
from storydist.cluster.script import Command, Script

OF_A_TASK = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURMD_NODENAME"}
PORT_OPTIONS = ("--master_port", "--master-port", "--main_process_port")
WAITED = 'while told=""; do wait "$step"; code=$?; [ -n "$told" ] || break; done, with `told=1` in the trap'


def unheard_signal(script: Script) -> Iterator[Fault]:
    """The signal and the traps that should hear it."""
    signal, step = script.option("signal"), training_step(script)
    if signal is None or step is None:
        return
    to_batch = "B" in signal.value.partition(":")[0] if ":" in signal.value else False
    name = _plain(signal.value.rpartition(":")[2].partition("@")[0])
    traps = [(number, one) for number, one in enumerate(script.commands) if name in _trapped(one)]
    header = f"#SBATCH --signal={signal.value}"
    if not to_batch and traps:
        yield Fault(
            "signal-without-b",
            script.path,
            signal.line,
            header,
            f"without B: it goes to the steps alone, and the trap of line {traps[0][1].line} never hears it",
            f"#SBATCH --signal=B:{signal.value.rpartition(':')[2]}",
        )
    elif to_batch and not traps:
        yield Fault(
            "b-without-trap",
            script.path,
            signal.line,
            header,
            f"B: sends it to this script alone, and without a trap {name} ends bash, and the job with it",
            f"trap 'kill -USR1 \"$step\"' {name}, ahead of `srun ... & step=$!`",
        )
    elif to_batch and all(number > step.number for number, _ in traps):
        yield _fault(
            "late-trap",
            traps[0][1],
            "the trap stands behind srun, and until bash gets there the signal ends the job",
            f"the trap ahead of srun (line {step.command.line})",
        )
    elif to_batch:
        yield from _not_passed_on(script, name, traps[0][1])


def _not_passed_on(script: Script, name: str, trap: Command) -> Iterator[Fault]:
    handlers = [one for one in script.commands if name in map(_plain, one.handler)]
    passing = [one for one in handlers if one.name in ("kill", "scancel")]
    if not passing and len(trap.own_words) > 1 and not trap.own_words[1].startswith("$"):
        yield _fault(
            "deaf-ranks",
            trap,
            "the trap tells nobody: the ranks go on training until they are killed",
            "trap 'kill -USR1 \"$step\"' " + name,
        )


def foreground(script: Script) -> Iterator[Fault]:
    step = training_step(script)
    signal = script.option("signal")
    if step is None or signal is None or not signal.value.startswith("B"):
        return
    if any(_trapped(one) for one in script.commands[: step.number]) and step.command.after != "&":
        yield _fault(
            "foreground-srun",
            step.command,
            "bash runs a trap only once the command in the foreground is over, which is when the job is",
            'srun ... & step=$!, then wait "$step"',
        )


def lost_exit_code(script: Script) -> Iterator[Fault]:
    """A step in the background and the `wait` for it."""
    step = training_step(script)
    if step is None or step.command.after != "&":
        return
    later = script.commands[step.number + 1 :]
    waits = [one for one in later if one.name == "wait"]
    if not waits:
        yield _fault(
            "no-wait", step.command, "the script ends at once, and Slurm ends the step with it", 'wait "$step"'
        )
    elif len({one.line for one in waits}) == 1 and not any(one.looped for one in waits):
        yield _fault(
            "single-wait",
            waits[0],
            "a signal ends `wait` with 128 + its number: the ranks still save, and their exit code is lost",
            WAITED,
        )


def ended_by_set_e(script: Script) -> Iterator[Fault]:
    """`set -e` and what comes behind the step."""
    step = training_step(script)
    if step is None:
        return
    strict = _is_strict_at(script, step.number)
    commands = script.commands[step.number :]
    ends = [(n, one) for n, one in enumerate(commands) if one.name == "wait" or one is step.command]
    for number, one in ends:
        strict = strict if one is step.command else _is_strict_at(script, step.number + number)
        unguarded = one.after not in ("&", "&&", "||") and not one.tested
        judged = any("?" in word.expands for later in commands[number + 1 :] for word in later.words)
        if strict and unguarded and judged:
            yield _fault(
                "set-e",
                one,
                "under `set -e` any exit code but 0 ends the script here: what follows never sees 75",
                f"code=0; {one.name} ... || code=$?  (or no `set -e` in a script about exit codes)",
            )
            return


def _is_strict_at(script: Script, number: int) -> bool:
    first = script.text.partition("\n")[0]
    strict = first.startswith("#!") and bool(re.search(r"\s-\w*e", first))
    for command in script.commands[:number]:
        words = command.own_words
        if command.name == "set":
            for sign, flags in re.findall(r"(?:^| )([-+])(\w+)", " ".join(words[1:])):
                if "e" in flags and flags in ("errexit", *_short_flags(flags)):
                    strict = sign == "-"
            if "errexit" in words:
                strict = words[words.index("errexit") - 1].startswith("-")
    return strict


def _short_flags(flags: str) -> tuple[str, ...]:
    return (flags,) if re.fullmatch(r"[abefhkmnptuvxBCEHPTo]+", flags) else ()


def launcher(script: Script) -> Iterator[Fault]:
    step = training_step(script)
    found = [word for word in step.words if word in LAUNCHERS] if step else []
    if step and found and script.option("signal"):
        yield _fault(
            "launcher-under-srun",
            step.command,
            f"USR1 ends {found[0]}, which does not pass it on, and its ranks live on unwatched or are killed unsaved",
            "srun ... slurm/ranks.sh launch/train.py ...: one Python for each rank",
        )


def cores(script: Script) -> Iterator[Fault]:
    step, asked = training_step(script), script.option("cpus-per-task")
    exported = any("SRUN_CPUS_PER_TASK" in _set_names(one) for one in script.commands)
    if step and asked and not exported and not step.has("-c", "--cpus-per-task"):
        yield _fault(
            "no-cpus-per-task",
            step.command,
            f"since 22.05 srun does not take --cpus-per-task={asked.value} from the job: ranks may get one core each",
            'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" ...',
        )


def left_ranks(script: Script) -> Iterator[Fault]:
    step = training_step(script)
    exported = any("SLURM_KILL_BAD_EXIT" in _set_names(one) for one in script.commands)
    if step and not exported and not step.has("-K", "--kill-on-bad-exit", "-W", "--wait"):
        yield _fault(
            "no-kill-on-bad-exit",
            step.command,
            "when a rank dies the others wait for it, and with srun's defaults nobody ends them",
            "srun --kill-on-bad-exit=1 ...; or =0 with --wait=120, so that those that are saving may finish",
        )


def early_variable(script: Script) -> Iterator[Fault]:
    step = training_step(script)
    names = sorted(step.command.expands & OF_A_TASK) if step else []
    if step and names:
        yield _fault(
            "early-variable",
            step.command,
            f"the batch shell puts its own ${names[0]} there, 0 or the first node's, and all ranks get the same",
            f"srun bash -c '... ${names[0]} ...' in single quotes, or a script that srun starts",
        )


def fixed_port(script: Script) -> Iterator[Fault]:
    for command in script.commands:
        port = command.assignments.get("MASTER_PORT", "")
        given = re.search(rf"({'|'.join(PORT_OPTIONS)})[= ]\d+", " ".join(command.own_words))
        if (port.isdecimal() and port != "0") or given:
            yield _fault(
                "fixed-port",
                command,
                "a second job on the node, or what is left of the last one, has that port already",
                "MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))",
            )


def no_resume(script: Script) -> Iterator[Fault]:
    step = training_step(script)
    if step and any("train.py" in word for word in step.words) and "--resume" not in " ".join(step.words):
        yield _fault(
            "no-resume",
            step.command,
            "a requeued job would not go on from its checkpoint: launch/train.py refuses a folder that holds a run",
            "launch/train.py ... --resume (a first life starts afresh by itself)",
        )


def endless(script: Script) -> Iterator[Fault]:
    """Requeueing: bounded, and only for exit codes that ask for it."""
    again = [one for one in script.commands if _requeues(one)]
    everything = {name for one in script.commands for name in one.expands}
    for command in again:
        if command.handler:
            yield _fault(
                "requeue-in-trap",
                command,
                "the requeue ends the step at once, before the ranks have saved",
                "hand the signal on, wait for the ranks, and requeue when they leave with 75",
            )
        elif not command.conditional or "?" not in everything:
            yield _fault(
                "unchecked-requeue",
                command,
                "a finished run, and one that fails by a mistake, would begin again as well",
                'if [ "$code" = 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
            )
        if "SLURM_RESTART_COUNT" not in everything:
            yield _fault(
                "endless-requeue",
                command,
                "a job that stops each time without getting further would be requeued for ever",
                '[ "${SLURM_RESTART_COUNT:-0}" -lt "$MAX_REQUEUES" ] && scontrol requeue "$SLURM_JOB_ID"',
            )


def _requeues(command: Command) -> bool:
    words = command.own_words
    return "scontrol" in words[:1] and "requeue" in words[1:3]


def _trapped(command: Command) -> list[str]:
    """The signals whose trap a command sets."""
    words = [word for word in command.own_words if word != "--"]
    if command.name != "trap" or command.handler or len(words) < 3 or words[1] in ("", "-"):
        return []
    return [_plain(word) for word in words[2:]]


def _plain(signal: str) -> str:
    name = signal.upper().removeprefix("SIG")
    return {"10": "USR1", "12": "USR2", "15": "TERM"}.get(name, name)


def _set_names(command: Command) -> set[str]:
    """Variables that a command sets or exports."""
    exported = command.own_words[1:] if command.name == "export" else []
    return {*command.assignments, *(word.partition("=")[0] for word in exported)}


def _fault(rule: str, command: Command, why: str, instead: str) -> Fault:
    what = " ".join(word.text for word in command.words)
    return Fault(rule, command.file, command.line, what if len(what) <= 100 else f"{what[:97]}...", why, instead)


COMMAND_RULES: tuple[Callable[[Script], Iterator[Fault]], ...] = (
    unheard_signal,
    foreground,
    lost_exit_code,
    ended_by_set_e,
    launcher,
    cores,
    left_ranks,
    early_variable,
    fixed_port,
    no_resume,
    endless,
)
