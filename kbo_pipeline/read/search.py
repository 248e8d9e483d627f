"""Finds current enterprises by what people type: the search index forgives, SQL does not.

A text is parsed once: a number in it, its legal form, its words. The index gives the documents that
may be meant, cheaply and generously; `names.likeness` then says how well each of them is.
"""

import datetime
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tantivy import Occur, Query

from kbo_pipeline.core.database import Database
from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read import search_sql
from kbo_pipeline.read.index import Record, SearchIndex
from kbo_pipeline.read.names import (
    MIN_FUZZY,
    FoldedName,
    edits_of,
    fold,
    form_of_code,
    has_all,
    likeness,
    name_of,
)
from kbo_pipeline.read.search_sql import Criteria
from kbo_pipeline.read.types import Match, PublishedExtract, dotted

CANDIDATES = 200
"""Documents that are compared with a text letter by letter, at least."""

_MOST_PARTS = 2000  # documents of one enterprise
_WITH_NACE = 1000  # enterprises that are asked for their activities
_LONGEST = 300  # characters of a text that are looked at; KBO's names have no more
_MOST_WORDS = 16
LEAST = 0.6
"""What scores less is not shown."""

_NUMBER = re.compile(r"(?<![0-9])(?:BE\s*)?[0-9](?:[\s.\-]?[0-9]){8,9}(?![0-9])", re.IGNORECASE)

MAIN, OTHER, UNIT, ADDRESS = range(4)
"""What may be meant: the main name of an enterprise, another, one of a unit, an address."""

_FACTORS = {MAIN: 1.0, OTHER: 0.99, UNIT: 0.985, ADDRESS: 0.98}
_OTHER_FORM = 0.97  # the score of somebody with another legal form than was asked for
_BY_PLACE = 0.98  # ... of whom some words are the place


@dataclass(frozen=True, slots=True)
class Hit:
    """A name or an address that may be meant.

    Attributes:
        record: of the document.
        likeness: of the name or address alone, from 0 to 1.
        score: the same, less what speaks against it.
        is_exact: all words stand in it as they are.
    """

    record: Record
    kind: int
    entity: str
    text: str
    place: frozenset[str]
    likeness: float
    score: float
    is_exact: bool

    @property
    def enterprise(self) -> str:
        """The number of the enterprise that has it."""
        return self.record.enterprise

    @property
    def order(self) -> tuple[Any, ...]:
        """The best first: exact ones, then by score, active ones, shorter names, numbers."""
        stopped = self.record.status != "AC"
        best = (not self.is_exact, -self.score, stopped, len(self.text), self.enterprise)
        return (*best, self.kind, self.text)


def find(
    database: Database, criteria: Criteria, newest: PublishedExtract, index: SearchIndex | None
) -> list[Match]:
    """Finds the enterprises that meet all criteria, the best matches first.

    Args:
        database: the published register.
        criteria: what they must have.
        newest: its newest extract.
        index: of the register; None for a search with SQL, which forgives nothing.

    Raises:
        NotFoundError: the criteria say nothing to look for.
        NotReadyError: the index turns out to be damaged.
    """
    text = criteria.text.strip()[:_LONGEST]
    if index is None or not fold(text) or criteria.limit < 1:
        return search_sql.find(database, criteria, newest)
    filters = _filters(index, criteria)
    found = _by_number(index, text, filters)
    if found is None:
        wanted = _WITH_NACE if criteria.nace else criteria.limit
        hits = best_by_enterprise(_hits(index, text, filters, wanted))
        if criteria.nace:
            numbers = [hit.enterprise for hit in hits[:_WITH_NACE]]
            having = search_sql.with_activity(database, criteria, numbers, newest)
            hits = [hit for hit in hits if hit.enterprise in having]
        return described(hits[: criteria.limit])
    if criteria.nace and found:
        numbers = [match.enterprise_number for match in found]
        having = search_sql.with_activity(database, criteria, numbers, newest)
        found = [match for match in found if match.enterprise_number in having]
    return found


def _filters(index: SearchIndex, criteria: Criteria) -> list[Query]:
    """What each document must have."""
    wanted = {"zipcode": criteria.zipcode, "status": criteria.status}
    return [index.term(name, value) for name, value in wanted.items() if value]


def _by_number(index: SearchIndex, text: str, filters: Sequence[Query]) -> list[Match] | None:
    """The enterprise whose number, or that of a unit, is the text or in it.

    None where no number of the register is: then the text is a name. The text may be a number in
    any spelling, or hold one among other words.
    """
    for part in (text, *(found[0] for found in _NUMBER.finditer(text))):
        try:
            number = dotted(part)
        except NotFoundError:
            continue
        record = head_of(index, number, filters)
        if record is not None:
            return [match_of(record, number, number, 1.0, is_exact=True)]
    return None


def head_of(index: SearchIndex, number: str, filters: Sequence[Query] = ()) -> Record | None:
    """A record of the enterprise that has a number, itself or one of its units."""
    return next(iter(index.documents(_all(index.term("number", number), *filters), 1)), None)


def _all(query: Query, *filters: Query) -> Query:
    """Documents that meet filters, too; these add nothing to the order."""
    if not filters:
        return query
    silent = [(Occur.Must, Query.const_score_query(other, 0.0)) for other in filters]
    return Query.boolean_query([(Occur.Must, query), *silent])


def _hits(index: SearchIndex, text: str, filters: Sequence[Query], limit: int) -> list[Hit]:
    """The documents that may be meant by a text, compared with it."""
    name = name_of(text)
    words = name.words[:_MOST_WORDS]
    most = max(CANDIDATES, 4 * limit)
    records = index.documents(_all(_like(index, FoldedName(words, name.form)), *filters), most)
    hits = [hit for record in records for hit in by_name(record, words, name.form)]
    if any(any(c.isdigit() for c in word) for word in words) and len(words) > 1:
        every = tuple(fold(text).split()[:_MOST_WORDS])
        records = index.documents(_all(_at(index, every), *filters), most)
        hits += [hit for record in records for hit in by_address(record, every)]
    return [hit for hit in hits if hit.score >= LEAST]


def records_of(index: SearchIndex, enterprise: str) -> list[Record]:
    """Records of an enterprise and its units."""
    return index.documents(index.term("number", enterprise), _MOST_PARTS)


def same_name(index: SearchIndex, name: FoldedName, limit: int) -> list[Record]:
    """Records of names that are a name but for one letter and blanks."""
    return index.documents(_whole(index, name), limit)


def like(index: SearchIndex, name: FoldedName, limit: int) -> list[Record]:
    """Records of names that have words of a name, or nearly."""
    return index.documents(_like(index, name), limit)


def _whole(index: SearchIndex, name: FoldedName) -> Query:
    """Names of the same letters, or of all but one; blanks do not count."""
    ways = [(Occur.Should, _scored(index.term("whole", name.whole), 60.0))]
    if len(name.whole) >= MIN_FUZZY:
        ways.append((Occur.Should, _scored(index.nearly("whole", name.whole, 1), 30.0)))
    return Query.boolean_query(ways)


def _scored(query: Query, score: float) -> Query:
    return Query.const_score_query(query, score)


def _like(index: SearchIndex, name: FoldedName) -> Query:
    """Names that have some of the words, or words that are nearly so; the place adds to the order.

    A word that is there as it is counts by how rare it is, a similar one a little less than most.
    """
    named = [(Occur.Should, _whole(index, name))]
    placed = []
    last = len(name.words) - 1
    for place, word in enumerate(name.words):
        ways = [index.term("name", word)]
        if edits := edits_of(word):
            ways.append(_scored(index.nearly("name", word, edits), 4.0))
        if place == last and len(word) > 2:
            ways.append(_scored(index.nearly("name", word, 0, is_prefix=True), 3.0))
        named.append((Occur.Should, Query.disjunction_max_query(ways)))
        if last:
            placed.append((Occur.Should, _scored(index.term("place", word), 2.0)))
    return Query.boolean_query([(Occur.Must, Query.boolean_query(named)), *placed])


def _at(index: SearchIndex, words: Sequence[str]) -> Query:
    """Addresses that have some of the words."""
    ways = []
    for word in words:
        ways.append((Occur.Should, index.term("place", word)))
        if len(word) >= MIN_FUZZY and not any(c.isdigit() for c in word):
            ways.append((Occur.Should, _scored(index.nearly("place", word, 1), 2.0)))
    return Query.boolean_query(ways)


def by_name(record: Record, words: Sequence[str], form: str | None) -> Iterator[Hit]:
    """How well each name of a document is what some words and a legal form mean."""
    named = [(UNIT if n != record.enterprise else OTHER, n, text) for n, text in record.names or ()]
    if record.part == 0:
        named.append((MAIN, record.enterprise, record.name))
    place = record.place
    for kind, entity, text in named:
        name = name_of(text)
        alike = likeness(words, name.words)
        score = alike
        rest = [word for word in words if word not in place or word in name.words]
        if 0 < len(rest) < len(words):
            score = max(score, _BY_PLACE * likeness(rest, name.words))
        score *= _FACTORS[kind]
        its_form = form_of_code(record.form) or name.form
        if form is not None and its_form is not None and form != its_form:
            score *= _OTHER_FORM
        is_exact = alike == 1.0 or has_all(words, frozenset(name.words), place)
        yield Hit(record, kind, entity, text, place, alike, round(score, 4), is_exact)


def by_address(record: Record, words: Sequence[str]) -> Iterator[Hit]:
    """How well each address of a document is what some words mean."""
    for entity, text in record.addresses or ():
        its_words = tuple(fold(text).split())
        alike = likeness(words, its_words)
        score = round(alike * _FACTORS[ADDRESS], 4)
        is_exact = alike == 1.0 or has_all(words, frozenset(its_words), ())
        yield Hit(record, ADDRESS, entity, text, frozenset(), alike, score, is_exact)


def best_by_enterprise(hits: Iterable[Hit]) -> list[Hit]:
    """The best hit of each enterprise, the best of all first."""
    best: dict[str, Hit] = {}
    for hit in sorted(hits, key=lambda hit: hit.order):
        best.setdefault(hit.enterprise, hit)
    return list(best.values())


def described(hits: Iterable[Hit]) -> list[Match]:
    """What readers get of hits."""
    return [
        replace(
            match_of(hit.record, hit.entity, hit.text, hit.score, is_exact=hit.is_exact),
            matched_name=hit.text if hit.kind != ADDRESS else None,
        )
        for hit in hits
    ]


def match_of(record: Record, number: str, matched: str, score: float, *, is_exact: bool) -> Match:
    """What readers get of an enterprise by its record, where no name has matched."""
    return Match(
        record.enterprise,
        record.name,
        record.status,
        record.zipcode,
        record.municipality,
        datetime.date.fromisoformat(record.struck_off) if record.struck_off else None,
        matched_number=number,
        matched_name=None,
        score=score,
        matched=matched,
        is_exact=is_exact,
    )
