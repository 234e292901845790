"""A user's own names: pairs of patterns, theirs and ours, from a file or a dict, used in both directions.

A file has one pair a line, or is a JSON object. Ours are the names of any known family; numbers in braces are
copied, and `{s+1}` is one more on that side:

    # names.txt
    layer{s}.{b}.attention.squeeze.0 = layer{s}.{b}.se.fc1
    classifier = fc
    trunk. = backbone.

A pair names a module with all that is in it, or a tensor, or, with a separator at the end, the beginning of
names. A pattern matches from the start of a name, or of what is left after its beginning; one of several
modules also matches from a later module, below any prefix.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from weights_convert.errors import MismatchError, SpecError, nearest
from weights_convert.families.names import PLACE, Rule, Rules, matched, rules_of
from weights_convert.layouts import skeleton

_LARGEST = 2**20  # bytes of a file
_MOST_PAIRS, _LONGEST = 5_000, 500
_SEPARATOR = re.compile(r"[./]")
_MOST_STARTS = 10  # modules of a name from which a pattern may match
Beginnings = list[tuple[str, str]]


class OwnNames:
    """Pairs of names, theirs and ours.

    Args:
        pairs: theirs -> ours.
        origin: the file, for messages.
        lines: theirs -> the line of the file.

    Raises:
        SpecError: a pair that cannot be used in both directions.
    """

    def __init__(
        self,
        pairs: Mapping[str, str],
        origin: str = "names",
        lines: Mapping[str, int] | None = None,
    ):
        self.origin, self._lines = origin, lines or {}
        if not isinstance(pairs, Mapping):
            raise SpecError(f"{origin}: a {type(pairs).__name__}, expected a dict or the path of a file")
        if not 0 < len(pairs) <= _MOST_PAIRS:
            raise SpecError(f"{origin}: {len(pairs)} pairs of names, expected 1 to {_MOST_PAIRS}")
        for theirs, ours in pairs.items():
            if problem := _problem(theirs, ours):
                raise SpecError(f"{self._at(theirs)}: {problem}")
        self._begin = {theirs: ours for theirs, ours in pairs.items() if _is_beginning(theirs, ours)}
        whole = [(theirs, ours) for theirs, ours in pairs.items() if theirs not in self._begin]
        self._to_ours, self._to_theirs = rules_of(whole), rules_of((ours, theirs) for theirs, ours in whole)
        self._pairs = dict(pairs)

    @classmethod
    def of(cls, names: Mapping[str, str] | str | Path) -> OwnNames:
        """The pairs of a dict, or of a file."""
        return _read(Path(names)) if isinstance(names, str | Path) else cls(names)

    def ours(self, names: Iterable[str], whose: object) -> dict[str, str]:
        """Our name -> name in a file, for each of these names; a name without a pair is unchanged.

        Raises:
            MismatchError: a pair that matches nothing, or two names that become one.
        """
        begin = _longest_first(self._begin.items())
        return self._collected(((name, *_ours(name, self._to_ours, begin)) for name in names), whose, 0)

    def theirs(self, names: Iterable[str], whose: object) -> dict[str, str]:
        """The inverse: their name -> our name.

        Raises:
            MismatchError: as `ours`.
            SpecError: two pairs with the same name of ours.
        """
        twice = [ours for ours, count in Counter(self._pairs.values()).items() if count > 1]
        if twice:
            raise SpecError(f"{self.origin}: {twice[0]!r} has several names of theirs, expected one to write")
        begin = _longest_first((ours, theirs) for theirs, ours in self._begin.items())
        found = {name: _by_rule(name, self._to_theirs) for name in names}
        moved = {name: _begun(name, begin) for name, by_rule in found.items() if by_rule is None}
        roots = {_root(name) for name, start in moved.items() if start is not None}
        renamed = []
        for name, by_rule in found.items():
            new, rule = by_rule or (name, None)
            by = [] if rule is None else [rule.source]
            start = _begun(new, begin)
            if start and (rule is None or _root(new) in roots):  # a module has one place
                new, by = start[1] + new.removeprefix(start[0]), [*by, start[0]]
            renamed.append((name, new, by))
        return self._collected(renamed, whose, 1)

    def match_any(self, names: Iterable[str]) -> bool:
        """Whether a pair matches one of these names of a file."""
        begin = _longest_first(self._begin.items())
        return any(_ours(name, self._to_ours, begin)[1] for name in names)

    def _collected(
        self, renamed: Iterable[tuple[str, str, list[str]]], whose: object, side: int
    ) -> dict[str, str]:
        """New name -> name, after checking that names and pairs are used once."""
        found: dict[str, str] = {}
        used: set[str] = set()
        for name, new, by in renamed:
            used.update(by)
            if new in found:
                raise MismatchError(
                    f"{whose}: by {self.origin}, {found[new]!r} and {name!r} have the same name {new!r}"
                )
            found[new] = name
        for pair in self._pairs.items():
            if pair[side] not in used:
                hint = nearest(pair[side], found.values())
                raise MismatchError(f"{self._at(pair[0])}: {pair[side]!r} matches no tensor of {whose}{hint}")
        return found

    def _at(self, theirs: str) -> str:
        return f"{self.origin}, line {self._lines[theirs]}" if theirs in self._lines else self.origin


def _is_beginning(theirs: str, ours: str) -> bool:
    return all(not text or text[-1] in "./" for text in (theirs, ours))


def _problem(theirs: object, ours: object) -> str:
    """Why two patterns are no pair, or ""."""
    for text in (theirs, ours):
        if not isinstance(text, str):
            return f"{text!r} is a {type(text).__name__}, expected a name"
        if len(text) > _LONGEST:
            return f"a name of {len(text)} characters, expected {_LONGEST} at most"
    assert isinstance(theirs, str)
    assert isinstance(ours, str)
    if theirs == ours:
        return f"{theirs!r} is the same on both sides"
    letters = [sorted(letter for letter, _ in PLACE.findall(text)) for text in (theirs, ours)]
    if letters[0] != letters[1] or len({*letters[0]}) != len(letters[0]):
        return f"{theirs!r} = {ours!r}: expected the same numbers in braces, once on both sides"
    if any(set(PLACE.sub("", text)) & set("{}") for text in (theirs, ours)):
        return f"{theirs!r} = {ours!r}: expected a letter in braces, such as {{s}} or {{s+1}}"
    if _is_beginning(theirs, ours):
        return "expected a beginning of names without numbers in braces" if letters[0] else ""
    if not theirs or not ours or theirs[-1] in "./" or ours[-1] in "./":
        return f"{theirs!r} = {ours!r}: expected a separator at the end of both or of none"
    return ""


def _ours(name: str, rules: Rules, begin: Beginnings) -> tuple[str, list[str]]:
    """The new name, and the patterns that led to it."""
    if found := _by_rule(name, rules):
        return found[0], [found[1].source]
    if start := _begun(name, begin):
        rest = name.removeprefix(start[0])
        found = _by_rule(rest, rules)
        return start[1] + (found[0] if found else rest), [start[0], *([found[1].source] if found else [])]
    for at in [match.end() for match in _SEPARATOR.finditer(name)][:_MOST_STARTS]:
        found = _by_rule(name[at:], rules)
        if found and _SEPARATOR.search(found[1].source):
            return name[:at] + found[0], [found[1].source]
    return name, []


def _longest_first(pairs: Iterable[tuple[str, str]]) -> Beginnings:
    return sorted(pairs, key=lambda pair: -len(pair[0]))


def _begun(name: str, begin: Beginnings) -> tuple[str, str] | None:
    """The longest beginning of a name, and what replaces it."""
    return next((pair for pair in begin if name.startswith(pair[0])), None)


def _root(name: str) -> str:
    """The first module of a name, without numbers."""
    return skeleton(_SEPARATOR.split(name, maxsplit=1)[0])


def _by_rule(name: str, rules: Rules) -> tuple[str, Rule] | None:
    """The new name of a tensor by a pair for it, or for the innermost of its modules that has one."""
    cut = len(name)
    for _ in range(_MOST_STARTS):
        if found := matched(rules, name[:cut]):
            return found[0] + name[cut:], found[1]
        cut = max(name.rfind(".", 0, cut), name.rfind("/", 0, cut))
        if cut <= 0:
            break
    return None


# --------------------------------------------------------------------------------------------------
# Files


def _read(path: Path) -> OwnNames:
    """The pairs of a file.

    Raises:
        SpecError: the file cannot be read; the message names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, bytes that are not UTF-8
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SpecError(f"{path}: cannot be read as names ({reason})") from None
    if len(data) > _LARGEST:
        raise SpecError(f"{path}: more than {_LARGEST:,} bytes, expected a file of names")
    if text.lstrip().startswith("{"):
        named = _of_json(path, text)
        return OwnNames(named, str(path), {name: _line_of(name, text) for name in named})
    pairs: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, theirs, ours in _lines(path, text):
        if theirs in pairs:
            raise SpecError(f"{path}, line {number}: {theirs!r} is named in line {lines[theirs]} already")
        pairs[theirs], lines[theirs] = ours, number
    return OwnNames(pairs, str(path), lines)


def _lines(path: Path, text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content:
            continue
        theirs, equals, ours = (part.strip() for part in content.partition("="))
        if not equals or "=" in ours:
            raise SpecError(f"{path}, line {number}: {content[:80]!r}, expected THEIRS = OURS")
        yield number, theirs, ours


def _of_json(path: Path, text: str) -> dict[str, str]:
    def unique(pairs: list[tuple[str, str]]) -> dict[str, str]:
        if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
            raise SpecError(f"{path}: {twice[0]!r} is named twice")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise SpecError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (ValueError, RecursionError):
        raise SpecError(f"{path}: not JSON") from None
    assert isinstance(value, dict)  # it begins with a brace
    return value


def _line_of(name: str, text: str) -> int:
    """The line of a JSON text with this key."""
    return text[: max(text.find(json.dumps(name, ensure_ascii=False)), 0)].count("\n") + 1
