"""Patterns of file names: which files belong together is what stands in the same place of their paths, never order.

`*` stands for anything within one part of a path, `**` as a part of its own for any number of folders; `{a,b}` for one
of the words. What `*` and `**` stand for is captured, and so are braces in folders' names; all captures are a path's
key, and paths with the same key belong together. Braces in file names (`*.{jpg,png}`) are not part of the key, nor is
`{*}`, which stands for anything. Everything else stands for itself, in the case that it is written in. Folders are
listed once, and only those in which the pattern may match.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

MAX_ALTERNATIVES = 64
"""Of one part of a pattern, all combinations of its braces."""
MAX_DEPTH = 64
"""Folders within each other that `**` looks into."""
_TOKENS = re.compile(r"\{\*\}|\{[^{}]*\}|\*|[^*{}]+")

Key = tuple[str, ...]
"""What a pattern captured in a path, from left to right."""


class PatternError(ValueError):
    """The pattern cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to read a part of a pattern: `literals` with a wildcard between each two.

    `captures`: for each wildcard whether it is part of the key. `words`: (number of wildcards before it, text) of
    each alternative that was chosen and is part of the key.
    """

    literals: tuple[str, ...]
    captures: tuple[bool, ...]
    words: tuple[tuple[int, str], ...]

    def match(self, name: str) -> Key | None:
        """Each wildcard takes as little as it can, the last one what is left."""
        first, *others = self.literals
        if not name.startswith(first):
            return None
        if not others:
            return tuple(word for _, word in self.words) if name == first else None
        last = len(name) - len(others[-1])
        position, found = len(first), []
        for literal in others[:-1]:
            place = name.find(literal, position, last)
            if place < 0:
                return None
            found.append(name[position:place])
            position = place + len(literal)
        if last < position or not name.endswith(others[-1]):
            return None
        found.append(name[position:last])
        return self._key(found)

    def _key(self, found: list[str]) -> Key:
        key: list[str] = []
        for number in range(len(found) + 1):
            key += [word for place, word in self.words if place == number]
            if number < len(found) and self.captures[number]:
                key.append(found[number])
        return tuple(key)


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file that matches: path relative to the root with `/`, size in bytes, what the pattern captured."""

    path: str
    bytes: int
    key: Key


class NamePattern:
    """
    Attributes:
        text: as it was given.
        captures: how many strings a key has.

    Raises:
        PatternError: for a pattern that is absolute, leads upwards, or cannot be read.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        parts = text.split("/")
        if "\\" in text or "\0" in text or any(part in ("", ".", "..") for part in parts):
            raise PatternError(f"{text!r} is no pattern of paths below a folder: it has parts that are '', '.' or '..'")
        if parts.count("**") > 1 or parts[-1] == "**":
            raise PatternError(f"{text!r}: ** stands for folders, once in a pattern, with a file's name after it")
        self._parts = [None if part == "**" else _ways(part, number < len(parts) - 1, text)
                       for number, part in enumerate(parts)]  # fmt: skip
        self._open = self._parts.index(None) if None in self._parts else -1
        self.captures = sum(1 if ways is None else sum(ways[0].captures) + len(ways[0].words) for ways in self._parts)

    def key(self, path: str) -> Key | None:
        """What this pattern captures in a path, or None if it does not match.

        >>> NamePattern("images/*/*.{jpg,png}").key("images/a/b.c.png")
        ('a', 'b.c')
        """
        names = path.split("/")
        extra = len(names) - len(self._parts)
        if (extra and self._open < 0) or extra < -1:
            return None
        key: list[str] = []
        position = 0
        for ways in self._parts:
            if ways is None:
                captured: Key | None = ("/".join(names[position : position + extra + 1]),)
                position += extra + 1
            else:
                captured = _match(ways, names[position])
                position += 1
            if captured is None:
                return None
            key += captured
        return tuple(key)

    def files(self, root: Path) -> list[FoundFile]:
        """The files below `root` that match, by path.

        Names that begin with a dot are not inputs, nor is what links lead to outside of `root`.
        """
        found = []
        for path, entry in _walk(root, self):
            key = self.key(path)
            if key is not None:
                found.append(FoundFile(path, entry.stat().st_size, key))
        return sorted(found, key=lambda file: file.path)

    def may_enter(self, depth: int, name: str) -> bool:
        """Whether files that match may lie below a folder of this name, `depth` folders below the root."""
        if 0 <= self._open <= depth:
            return depth < MAX_DEPTH
        ways = self._parts[depth]
        return depth < len(self._parts) - 1 and ways is not None and _match(ways, name) is not None


def _ways(part: str, folder: bool, text: str) -> tuple[_Way, ...]:
    """All ways to read one part: one for each combination of alternatives."""
    tokens = _TOKENS.findall(part)
    if "".join(tokens) != part or "**" in part.replace("{*}", ""):
        raise PatternError(f"{text!r}: {part!r} has ** beside other characters, or braces that do not fit together")
    braces = [token[1:-1].split(",") if _is_choice(token) else [token] for token in tokens]
    combinations = list(product(*braces))
    if len(combinations) > MAX_ALTERNATIVES:
        raise PatternError(f"{text!r}: {part!r} has over {MAX_ALTERNATIVES} alternatives")
    ways = []
    for combination in combinations:
        literals, captures, words = [""], [], []
        for token, word in zip(tokens, combination, strict=True):
            if token in ("*", "{*}"):
                literals.append("")
                captures.append(token == "*")
                continue
            if _is_choice(token) and folder:
                words.append((len(captures), word))
            literals[-1] += word
        ways.append(_Way(tuple(literals), tuple(captures), tuple(words)))
    return tuple(ways)


def _is_choice(token: str) -> bool:
    return token.startswith("{") and token != "{*}"


def _match(ways: tuple[_Way, ...], name: str) -> Key | None:
    """By the first way that fits."""
    return next((key for way in ways if (key := way.match(name)) is not None), None)


def _walk(root: Path, pattern: NamePattern) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """(relative path, entry) of the files in all folders that the pattern may reach."""
    inside = os.path.realpath(root)
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (inside,))]
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(root / folder) as entries:
            listed = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in listed:
            path = f"{folder}/{entry.name}" if folder else entry.name
            target = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
            if not target.startswith(os.path.join(inside, "")):
                continue
            if entry.is_file():
                yield path, entry
            # A link to a folder that it lies in would never end.
            elif entry.is_dir() and target not in above and pattern.may_enter(path.count("/"), entry.name):
                waiting.append((path, (*above, target)))
