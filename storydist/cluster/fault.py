"""A fault of a batch script, and which of its commands the rules are about."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from storydist.cluster.script import Command, Script


@dataclass(frozen=True)
class Fault:
    """`what` stands there, `why` it is wrong, what to write `instead`. `rule`: its name."""

    rule: str
    file: str
    line: int
    what: str
    why: str
    instead: str

    def told(self) -> str:
        return f"{self.file}:{self.line}: {self.what} [{self.rule}]\n    {self.why}\n    instead: {self.instead}"


@dataclass(frozen=True)
class Srun:
    """The step that trains. `number`: its place among the script's commands; `words`: from `srun` on."""

    command: Command
    number: int
    words: Sequence[str]

    def has(self, *names: str) -> bool:
        """Whether an option of srun itself is given; a program's own words come behind the first that is no option."""
        return any(word == name or word.startswith(f"{name}=") for word in self.words for name in names) or any(
            len(name) == 2 and word.startswith(name) and not word.startswith("--")
            for word in self.words
            for name in names
        )


def training_step(script: Script) -> Srun | None:
    """The srun that starts launch/train.py, or else the last one; None without any."""
    steps = list(_sruns(script))
    training = [step for step in steps if any("train.py" in word for word in step.words)]
    return next(iter([*training, *reversed(steps)]), None)


def _sruns(script: Script) -> Iterator[Srun]:
    for number, command in enumerate(script.commands):
        words = command.own_words
        if "srun" in words[:6] and words[0] not in ("echo", "printf", "trap", "say"):
            yield Srun(command, number, words[words.index("srun") :])


def lead_s(script: Script) -> int | None:
    """How long before its end a job is sent its signal, seconds; None when it is sent none."""
    signal = script.option("signal")
    if signal is None:
        return None
    seconds = signal.value.partition("@")[2]
    return int(seconds) if seconds.isdecimal() else 60  # sbatch's own default
