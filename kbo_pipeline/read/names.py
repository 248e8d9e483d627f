"""How names are compared: folded, without legal forms, word by word. No I/O.

One text is folded in one place, here, whether it is a name of the register or what somebody types:
what is equal when folded is the same name.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import OSA

_LETTERS = str.maketrans(
    {
        **{"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"},
        **dict.fromkeys("’‘`´ʼ′", "'"),
    }
)
_BLANKS = {code: " " for code in range(128) if not chr(code).isalnum()}
_OWNED = re.compile(r"'s\b")
_WORD = re.compile(r"'?[^\W_]+'?")

_CONNECTORS = frozenset(("en", "et", "und", "and"))
"""Words for which people write `&`, or leave them out."""

FORMS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "nv": (
        frozenset(("nv", "sa", "ag")),
        frozenset(("014", "114", "214", "514", "614")),
    ),
    "bv": (
        frozenset(("bv", "srl", "bvba", "sprl", "ebvba", "sprlu", "gmbh", "pgmbh")),
        frozenset(("010", "015", "215", "510", "515", "610", "616")),
    ),
    "cv": (
        frozenset(("cv", "sc", "cvba", "scrl", "cvoa", "scri", "gen")),
        frozenset(
            (
                *("006", "007", "008", "009", "016", "106", "107", "108", "109", "116", "206"),
                *("208", "506", "508", "606", "608", "706", "716"),
            )
        ),
    ),
    "commv": (
        frozenset(("commv", "scomm", "gcv", "scs", "kg")),
        frozenset(("012", "212", "512", "612", "617")),
    ),
    "commva": (frozenset(("commva", "sca", "kgaa")), frozenset(("013", "213", "513"))),
    "vof": (frozenset(("vof", "snc", "ohg")), frozenset(("011", "211", "511"))),
    "vzw": (frozenset(("vzw", "asbl", "vog")), frozenset(("017", "117"))),
    "ivzw": (frozenset(("ivzw", "aisbl", "ivog")), frozenset(("125", "325"))),
    "esv": (frozenset(("esv", "gie", "ewiv", "eesv", "geie")), frozenset(("060", "065", "260"))),
    "vme": (frozenset(("vme", "acp")), frozenset(("070",))),
}
"""Legal forms: how people write each of them, in any language, and KBO's codes of it.

What a form was called before the code of companies of 2019 counts as the form that it became.
"""

_FORM_OF_WORD = {word: form for form, (words, _) in FORMS.items() for word in words}
_FORM_OF_CODE = {code: form for form, (_, codes) in FORMS.items() for code in codes}
_OF_TWO = {
    ("comm", "v"): "commv",
    ("comm", "va"): "commva",
    ("s", "comm"): "scomm",
    ("se", "comm"): "scomm",
}

MIN_FUZZY = 4
"""Letters of a word, at least, of which one may be wrong."""

MIN_FUZZY_TWICE = 8
"""Letters of a word, at least, of which two may be wrong."""

_LEAST_ALIKE = 0.6
"""Two words that are less alike have nothing to do with each other."""


def fold(text: str) -> str:
    """A text as names are compared: words of small letters and digits, a blank between two.

    Case, accents and punctuation are gone, `œ` is `oe` and `ß` is `ss`; letters that stand alone
    are one word, so that `N.V.`, `N V` and `nv` are equal.
    """
    text = text.casefold()
    if text.isascii() and "'" not in text:  # most texts: the same, in a third of the time
        words = text.translate(_BLANKS).split()
        if 1 not in map(len, words):
            return " ".join(words)
    if not text.isascii():
        text = unicodedata.normalize("NFKD", text.translate(_LETTERS))
        text = "".join(c for c in text if not unicodedata.combining(c))
    words = []
    run = ""
    for word in _WORD.findall(_OWNED.sub("s", text)):
        if len(word) == 1 and word.isalpha():
            run += word
            continue
        if run:
            words.append(run)
            run = ""
        words.append(word.strip("'"))  # that of `l'or` or `'t` belongs to the next word
    if run:
        words.append(run)
    return " ".join(words)


@dataclass(frozen=True, slots=True)
class FoldedName:
    """A name as it is compared.

    Attributes:
        words: folded, without legal form and without `and` in any language.
        form: the legal form that stands in it, one of `FORMS`.
    """

    words: tuple[str, ...]
    form: str | None

    @property
    def whole(self) -> str:
        """All words as one, for which it does not matter where blanks are."""
        return "".join(self.words)

    @property
    def turned(self) -> str:
        """All words as one, in the order of the alphabet."""
        return "".join(sorted(self.words))


@lru_cache(maxsize=4096)
def name_of(text: str) -> FoldedName:
    """The name that a text is; a legal form at its beginning or end is taken off.

    What consists of such words alone keeps them.
    """
    words = fold(text).split()
    for at in range(len(words) - 2, -1, -1):
        joined = _OF_TWO.get((words[at], words[at + 1]))
        if joined is not None:
            words[at : at + 2] = [joined]
    form = None
    while len(words) > 1 and words[-1] in _FORM_OF_WORD:
        form = _FORM_OF_WORD[words.pop()]
    if len(words) > 1 and words[0] in _FORM_OF_WORD:
        form = form or _FORM_OF_WORD[words[0]]
        del words[0]
    kept = tuple(word for word in words if word not in _CONNECTORS)
    return FoldedName(kept or tuple(words), form)


def form_of_code(code: str | None) -> str | None:
    """The one of `FORMS` to which KBO's code of a legal form belongs; None for others."""
    return _FORM_OF_CODE.get(code) if code is not None else None


def edits_of(word: str) -> int:
    """How many letters of a word may be wrong."""
    if len(word) < MIN_FUZZY or word.isdigit():
        return 0
    return 2 if len(word) >= MIN_FUZZY_TWICE else 1


def has_all(
    words: Sequence[str], name: Collection[str], place: Collection[str], *, is_typing: bool = True
) -> bool:
    """Tells whether all words stand in a name or its place as they are.

    Args:
        words: what is looked for.
        name: the words of a name, at least one of which must be among them.
        place: the words of its places.
        is_typing: the last word may be the beginning of one in the name.
    """
    if not words:
        return False
    in_name = [word in name for word in words]
    if is_typing and not in_name[-1]:
        in_name[-1] = any(word.startswith(words[-1]) for word in name)
    return any(in_name) and all(
        found or word in place for word, found in zip(words, in_name, strict=True)
    )


def likeness(words: Sequence[str], name: Sequence[str]) -> float:
    """How alike two names are, from 0 to 1; 1 only if their letters are the same, in order.

    Args:
        words: what is looked for; the last word may be the beginning of one.
        name: the name of somebody.
    """
    if not words or not name:
        return 0.0
    text, other = "".join(words), "".join(name)
    if text == other:
        return 1.0
    whole = OSA.normalized_similarity(text, other, score_cutoff=_LEAST_ALIKE)
    if len(words) > 1 or len(name) > 1:
        turned = OSA.normalized_similarity(
            "".join(sorted(words)), "".join(sorted(name)), score_cutoff=_LEAST_ALIKE
        )
        whole = max(whole, 0.99 * turned)
    return max(whole, _alignment(words, name))


def _alignment(words: Sequence[str], name: Sequence[str]) -> float:
    """How well each word is found in a name, and how much of the name they are."""
    left = list(name)
    alike = covered = 0.0
    for place, word in enumerate(words):
        best, best_at = 0.0, -1
        for at, other in enumerate(left):
            likeness = 1.0 if word == other else OSA.normalized_similarity(word, other)
            if likeness < 1.0 and place == len(words) - 1 and len(word) > 2:
                likeness = max(likeness, 0.95 if other.startswith(word) else 0.0)
            if likeness > best:
                best, best_at = likeness, at
        if best >= _LEAST_ALIKE:
            alike += len(word) * best
            covered += len(left.pop(best_at))
    total = sum(map(len, words))
    share = covered / sum(map(len, name))
    return min(0.98, alike / total * (0.6 + 0.4 * share))
