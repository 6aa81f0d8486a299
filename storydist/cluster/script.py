"""A batch script, read as Slurm and bash would: its #SBATCH lines, and its commands in the order in which they run.

Not a shell: quotes, comments, continued lines, here-documents, functions, conditions and loops are known; what a
variable holds is not. A function's commands stand where it is called; a file that `source` names is read in its place.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from storydist.cluster.shell_words import Reader, UnclosedError, Word

SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "o": "output", "e": "error", "t": "time", "a": "array"}
SHORT |= {"p": "partition", "J": "job-name", "G": "gpus", "A": "account", "C": "constraint", "w": "nodelist"}
DIRECTIVE = "#SBATCH"
DEEPEST = 8  # sourced files within each other
CONDITIONS, LOOPS = ("if", "case", "while", "until", "for", "select"), ("while", "until", "for")


@dataclass(frozen=True)
class Command:
    """`words`: assignments ahead of the name included. `before`, `after`: the operators around it.

    `conditional`: within if, case, a loop, or behind && or ||. `tested`: it is what a condition, && or || looks at, so
    `set -e` does not end the script on it. `looped`: within a loop. `handler`: the signals whose trap runs it.
    """

    words: tuple[Word, ...]
    file: str
    line: int
    before: str = "\n"
    after: str = "\n"
    conditional: bool = False
    tested: bool = False
    looped: bool = False
    function: str = ""
    handler: tuple[str, ...] = ()

    @property
    def own_words(self) -> list[str]:
        """Without assignments ahead and `exec`."""
        words = [word.text for word in self.words]
        while words and (is_assignment(words[0]) or words[0] in ("exec", "command", "builtin")):
            words.pop(0)
        return words

    @property
    def name(self) -> str:
        return next(iter(self.own_words), "")

    @property
    def assignments(self) -> dict[str, str]:
        """What it sets, by assignment, export, local, declare or `: "${NAME:=value}"`."""
        words = [word.text for word in self.words]
        if words[:1] == [":"]:
            words = [f"{m[1]}={m[2]}" for word in words if (m := re.fullmatch(r"\$\{(\w+):?=(.*)\}", word, re.DOTALL))]
        elif words[:1] and words[0] in ("export", "local", "declare", "readonly", "typeset"):
            words = words[1:]
        elif not all(map(is_assignment, words)):
            words = [word for word in words[: len(words) - len(self.own_words)] if is_assignment(word)]
        return dict(word.split("=", 1) for word in words if is_assignment(word))

    @property
    def expands(self) -> frozenset[str]:
        return frozenset().union(*(word.expands for word in self.words))


@dataclass(frozen=True)
class Directive:
    """One option of an #SBATCH line. `value` is "" for a flag."""

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Script:
    """`directives`: all #SBATCH options, those that Slurm ignores too; `first_command`: the line behind which it does.

    `commands`: in the order in which they run, as far as that can be known. `problem`: (line, what) when a
    quote or bracket is not closed.
    """

    path: str
    text: str
    directives: tuple[Directive, ...]
    first_command: int
    commands: tuple[Command, ...]
    problem: tuple[int, str] | None = None

    def option(self, name: str) -> Directive | None:
        """The option as Slurm takes it: the last one ahead of the first command."""
        found = [one for one in self.directives if one.name == name and one.line < self.first_command]
        return found[-1] if found else None


def read_script(path: Path, text: str, folders: Sequence[Path] = ()) -> Script:
    """`folders`: where sourced files are looked for: where the job is submitted, for one."""
    lines = text.replace("\r\n", "\n").split("\n")
    first = next((n for n, line in enumerate(lines, 1) if line.strip() and not line.lstrip().startswith("#")), 10**9)
    directives = tuple(_directives(lines))
    try:
        every = list(_with_sourced(parse(text.replace("\r\n", "\n"), str(path)), folders))
        functions: dict[str, list[Command]] = {}
        for command in every:
            functions.setdefault(command.function, []).append(command)
        commands = tuple(_in_order(functions.pop("", []), functions))
    except UnclosedError as error:
        return Script(str(path), text, directives, first, (), (error.line, error.what))
    return Script(str(path), text, directives, first, commands)


def _directives(lines: Sequence[str]) -> Iterator[Directive]:
    for number, line in enumerate(lines, 1):
        if not line.startswith(DIRECTIVE):
            continue
        try:
            words = shlex.split(line.removeprefix(DIRECTIVE), comments=True)
        except ValueError:
            words = line.removeprefix(DIRECTIVE).split()
        while words:
            word = words.pop(0)
            if word.startswith("--"):
                name, equals, value = word[2:].partition("=")
            else:
                name, equals, value = SHORT.get(word[1:2], word[1:2]), word[2:], word[2:]
            if not equals and words and not words[0].startswith("-"):
                value = words.pop(0)
            yield Directive(name, value, number)


def is_assignment(word: str) -> bool:
    return re.match(r"[A-Za-z_]\w*(\[[^\]]*\])?\+?=", word) is not None


# Commands


def parse(text: str, file: str) -> list[Command]:
    """The commands as they stand, those of functions too. Raises UnclosedError."""
    parser = _Parser(file)
    tokens = list(Reader(text).tokens())
    while tokens:
        token, line = tokens.pop(0)
        if isinstance(token, str):
            parser.operator(token)
        elif not parser.words and [t for t, _ in tokens[:2]] == ["(", ")"]:
            del tokens[:2]
            parser.function = token.text
        else:
            parser.word(token, line)
    parser.operator("\n")
    return parser.commands


class _Parser:
    def __init__(self, file: str):
        self.file = file
        self.commands: list[Command] = []
        self.words: list[Word] = []
        self.function = ""  # whose body begins next
        self._line, self._before, self._tested = 0, "\n", False
        self._open: list[str] = []  # conditions, loops, brackets ("?": behind && or ||) and functions ("function NAME")

    def word(self, word: Word, line: int) -> None:
        if not self.words:
            self._line = line
            if self._keyword(word.text):
                return
        self.words.append(word)

    def _keyword(self, text: str) -> bool:
        """Takes note of a word of the shell's own; False for the name of a command."""
        if text in CONDITIONS:
            self._open.append(text)
            self._tested = text in ("if", "while", "until")
            return text not in ("case", "for", "select")  # what follows those is no command
        if text == "{":
            bracket = f"function {self.function}" if self.function else "?" if self._guarded() else "{"
            self._open.append(bracket)
            self.function = ""
        elif text in ("}", "fi", "esac", "done"):
            del self._open[-1:]
        elif text in ("then", "elif", "else", "do"):
            self._tested = text == "elif"
        elif text not in ("!", "time"):
            return False
        return True

    def _guarded(self) -> bool:
        return self._before in ("&&", "||")

    def operator(self, operator: str) -> None:
        """Ends a command."""
        if self.words:
            names = [name for name in self._open if name.startswith("function ")]
            inside = self._open[self._open.index(names[-1]) + 1 :] if names else self._open
            self.commands.append(
                Command(
                    tuple(self.words),
                    self.file,
                    self._line,
                    self._before,
                    operator,
                    conditional=self._guarded() or any(one in (*CONDITIONS, "?") for one in inside),
                    tested=self._tested or operator in ("&&", "||"),
                    looped=any(one in LOOPS for one in inside),
                    function=names[-1].removeprefix("function ") if names else "",
                )
            )
            self._before = operator
        elif operator not in ("\n", "(", ")") or self._before not in ("&&", "||"):
            self._before = operator  # a line may end behind && and go on
        self.words = []


def _with_sourced(commands: Sequence[Command], folders: Sequence[Path], depth: int = 0) -> Iterator[Command]:
    for command in commands:
        yield command
        if command.name in ("source", ".") and depth < DEEPEST:
            name = next(iter(command.own_words[1:]), "")
            path = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if path is not None:
                inner = parse(path.read_text(encoding="utf-8"), str(path))
                placed = [one if one.function else _within(one, command) for one in inner]
                yield from _with_sourced(placed, folders, depth + 1)


def _in_order(commands: Sequence[Command], functions: Mapping[str, Sequence[Command]]) -> Iterator[Command]:
    for command in commands:
        yield command
        body: Sequence[Command] = ()
        words = command.own_words
        if command.name in functions:
            given = command.words[len(command.words) - len(words) + 1 :]
            body = [replace(one, words=_given(one.words, given)) for one in functions[command.name]]
        elif command.name == "trap" and len(words) > 2:
            body = [replace(one, handler=tuple(words[2:])) for one in parse(words[1], command.file)]
            body = [replace(one, line=command.line) for one in body]
        left = {name: found for name, found in functions.items() if name != command.name}  # none calls itself
        yield from _in_order([_within(one, command) for one in body], left)


def _within(inner: Command, outer: Command) -> Command:
    """A command that runs where `outer` stands."""
    return replace(
        inner,
        conditional=inner.conditional or outer.conditional,
        tested=inner.tested or outer.tested,
        looped=inner.looped or outer.looped,
        handler=inner.handler or outer.handler,
    )


def _given(words: Sequence[Word], arguments: Sequence[Word]) -> tuple[Word, ...]:
    """A function's words with what it was called with."""
    found: list[Word] = []
    for word in words:
        if word.text in ("$@", "$*", "${@}"):
            found += arguments
        elif re.fullmatch(r"\$[1-9]", word.text) and int(word.text[1]) <= len(arguments):
            found.append(arguments[int(word.text[1]) - 1])
        else:
            found.append(word)
    return tuple(found)
