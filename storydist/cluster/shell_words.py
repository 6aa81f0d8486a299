"""Cuts the text of a shell script into words and operators, as bash does; comments, redirections and here-documents are
left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

_VARIABLE = re.compile(r"\$\{?[#!]?([A-Za-z_]\w*|[?#@*$!0-9])")
_REDIRECTION = re.compile(r"\d*(<<<|<<-?|>>|[<>]&|&>>?|<>|>\||[<>])")
_OPERATOR = re.compile(r"\|\||&&|;;|\|&|[;&|()]")


@dataclass(frozen=True)
class Word:
    """`text`: quotes taken off. `expands`: the variables that this shell itself replaces."""

    text: str
    expands: frozenset[str] = frozenset()


class UnclosedError(Exception):
    """A quote or bracket that the text does not close."""

    def __init__(self, line: int, what: str):
        super().__init__(what)
        self.line, self.what = line, what


class Reader:
    """Cuts a text into words (with their line) and operators."""

    def __init__(self, text: str):
        self.text, self.at, self.line = text, 0, 1
        self.documents: list[str] = []  # delimiters of here-documents that begin after this line

    def tokens(self) -> Iterator[tuple[Word | str, int]]:
        while self.at < len(self.text):
            char, line = self.text[self.at], self.line
            if char == "\n":
                self._forward(1)
                for delimiter in self.documents:
                    self._skip_document(delimiter)
                self.documents.clear()
                yield "\n", line
            elif char in " \t":
                self._forward(1)
            elif self.text.startswith("\\\n", self.at):
                self._forward(2)
            elif char == "#":
                self.at = self._find("\n")
            elif redirection := _REDIRECTION.match(self.text, self.at):
                self._redirect(redirection)
            elif operator := _OPERATOR.match(self.text, self.at):
                self._forward(len(operator[0]))
                yield operator[0], line
            else:
                yield self._word(), line

    def _forward(self, count: int) -> str:
        passed = self.text[self.at : self.at + count]
        self.at, self.line = self.at + count, self.line + passed.count("\n")
        return passed

    def _find(self, text: str) -> int:
        found = self.text.find(text, self.at)
        return len(self.text) if found < 0 else found

    def _redirect(self, found: re.Match[str]) -> None:
        """Takes a redirection and its target out of the words."""
        self._forward(len(found[0]))
        if self.text.startswith("(", self.at):  # <(command): left to be read as commands
            return
        while self.text[self.at : self.at + 1] in (" ", "\t"):
            self._forward(1)
        target = self._word() if self.text[self.at : self.at + 1] not in ("", "\n") else Word("")
        if found[1] in ("<<", "<<-"):
            self.documents.append(target.text)

    def _skip_document(self, delimiter: str) -> None:
        while self.at < len(self.text):
            line = self._forward(self._find("\n") + 1 - self.at)
            if line.strip() == delimiter:
                return

    def _word(self) -> Word:
        text, start = "", self.line
        expands: set[str] = set()
        while self.at < len(self.text):
            char = self.text[self.at]
            if char in " \t\n;&|<>()":
                if char == "(" and text.endswith("="):  # an array
                    text += self._bracketed("(", ")")
                    continue
                break
            if char == "\\":
                text += self._forward(2).removeprefix("\\").removeprefix("\n")
            elif char == "'":
                end = self.text.find("'", self.at + 1)
                if end < 0:
                    raise UnclosedError(start, "a ' is not closed")
                text += self._forward(end + 1 - self.at)[1:-1]
            elif char == '"':
                self._forward(1)
                piece, found = self._double_quoted(start)
                text, expands = text + piece, expands | found
            elif char in "$`":
                piece = self._expansion()
                text, expands = text + piece, expands | set(_VARIABLE.findall(piece))
            else:
                text += self._forward(1)
        return Word(text, frozenset(expands))

    def _double_quoted(self, start: int) -> tuple[str, set[str]]:
        text = ""
        expands: set[str] = set()
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self._forward(1)
                return text, expands
            if char == "\\":
                text += self._forward(2)[1:]
            elif char in "$`":
                piece = self._expansion()
                text, expands = text + piece, expands | set(_VARIABLE.findall(piece))
            else:
                text += self._forward(1)
        raise UnclosedError(start, 'a " is not closed')

    def _expansion(self) -> str:
        """$NAME, ${...}, $(...), `...` as it stands."""
        if self.text.startswith("`", self.at):
            end = self.text.find("`", self.at + 1)
            if end < 0:
                raise UnclosedError(self.line, "a ` is not closed")
            return self._forward(end + 1 - self.at)
        following = self.text[self.at + 1 : self.at + 2]
        if following in ("{", "("):
            return self._forward(1) + self._bracketed(following, {"{": "}", "(": ")"}[following])
        return self._forward(len(name[0]) if (name := _VARIABLE.match(self.text, self.at)) else 1)

    def _bracketed(self, opening: str, closing: str) -> str:
        depth, start, begin = 0, self.line, self.at
        quoted = ""
        while self.at < len(self.text):
            char = self._forward(1)
            if char == "\\":
                self._forward(1)
            elif quoted:
                quoted = "" if char == quoted else quoted
            elif char in "'\"":
                quoted = char
            else:
                depth += (char == opening) - (char == closing)
                if depth == 0:
                    return self.text[begin : self.at]
        raise UnclosedError(start, f"a {opening} is not closed")
