"""Who in the register an entry of a list is: candidates, whether the best is certain, and why."""

from collections.abc import Sequence
from dataclasses import replace

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read.index import Record, SearchIndex
from kbo_pipeline.read.names import FoldedName, fold, name_of
from kbo_pipeline.read.search import (
    Hit,
    best_by_enterprise,
    by_name,
    described,
    head_of,
    like,
    records_of,
    same_name,
)
from kbo_pipeline.read.types import Entry, Matched, dotted, right_check_digits

CANDIDATES = 5
"""So many at most are given for an entry."""

_COMPARED = 200  # names that are compared with that of an entry
_EQUAL = 0.97  # names are taken as equal: another language, a trade name
_NEAR = 0.88  # one letter of nine is different
_GAP = 0.05  # by which the best must be ahead of the next
_ELSEWHERE = 0.9  # the score of somebody without an address at the postcode
_LEAST = 0.5  # below it, nobody is a candidate
_AGREES = 0.6  # a name that is less alike contradicts the number


def match(index: SearchIndex, entry: Entry) -> Matched:
    """Finds who an entry is.

    A number with right check digits that is in the register decides; a name that contradicts it
    makes it uncertain. Otherwise the name does, with the postcode where there is one.

    Raises:
        NotReadyError: the index turns out to be damaged.
    """
    name = name_of(entry.name[:300])
    reason = ""
    if entry.number and entry.number.strip():
        by_number, reason = _by_number(index, entry, name)
        if by_number is not None:
            return by_number
    hits = _hits(index, name, entry)
    if not hits:
        what = "no name is like it" if name.words else "there is no name to go by"
        return Matched(entry, (), False, f"{reason}{what}")
    certain, why = _judge(hits, entry)
    return Matched(entry, tuple(described(hits[:CANDIDATES])), certain, f"{reason}{why}")


def _by_number(index: SearchIndex, entry: Entry, name: FoldedName) -> tuple[Matched | None, str]:
    """The match by number, or else why the number says nothing."""
    try:
        number = dotted(entry.number or "")
    except NotFoundError:
        return None, "the number is none of KBO's; "
    digits = right_check_digits(number)
    if digits is not None and not number.endswith(digits):
        return None, "the number has wrong check digits; "
    head = head_of(index, number)
    if head is None:
        return None, "the number is not in the register; "
    records = records_of(index, head.enterprise)
    hits = [hit for record in records for hit in by_name(record, name.words, None)]
    best = min(hits, key=lambda hit: hit.order)
    agrees = not name.words or best.score >= _AGREES
    score = 1.0 if agrees else best.score
    found = described([replace(best, entity=number, score=score)])
    why = "the number is in the register"
    if name.words:
        why += ", and the name agrees" if agrees else f", but belongs to {found[0].name}"
    return Matched(entry, tuple(found), agrees, why), ""


def _hits(index: SearchIndex, name: FoldedName, entry: Entry) -> list[Hit]:
    """Whoever may be meant, the best first; more are asked for where no name is equal."""
    if not name.words:
        return []
    zipcode = fold(entry.zipcode or "")
    hits = _compared(same_name(index, name, _COMPARED), name, zipcode)
    if not hits or hits[0].likeness < 1.0:
        hits = _compared(like(index, name, _COMPARED), name, zipcode)
    return hits


def _compared(records: Sequence[Record], name: FoldedName, zipcode: str) -> list[Hit]:
    hits = []
    every = (hit for record in records for hit in by_name(record, name.words, name.form))
    for hit in every:
        if zipcode and zipcode not in hit.place:
            hit = replace(hit, score=round(hit.score * _ELSEWHERE, 4))
        if hit.score >= _LEAST:
            hits.append(replace(hit, is_exact=hit.likeness == 1.0))
    return best_by_enterprise(hits)


def _judge(hits: Sequence[Hit], entry: Entry) -> tuple[bool, str]:
    """Whether the best is certain, and why."""
    best, runner_up = hits[0], hits[1] if len(hits) > 1 else None
    zipcode = fold(entry.zipcode or "")
    is_here = bool(zipcode) and zipcode in best.place
    place = ", at this postcode" if is_here else ", at another postcode" if zipcode else ""
    gap = best.score - (runner_up.score if runner_up is not None else 0.0)
    if best.likeness >= _EQUAL:
        what = "the name is equal" if best.likeness == 1.0 else "the name is equal but for order"
    elif best.likeness >= _NEAR:
        what = "the name is nearly equal"
    else:
        return False, f"the name is only similar{place}"
    if runner_up is not None and gap < _GAP:
        also = "is equal" if runner_up.likeness >= _EQUAL else "is as near"
        return False, f"{what}{place}; another one {also}"
    if zipcode and not is_here:
        return False, f"{what}{place}"
    return True, f"{what}{place}; no other is as near"
