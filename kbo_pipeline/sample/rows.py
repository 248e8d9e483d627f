"""The rows of made-up entities in a given state, and the words, codes and values in them.

The code list has the real categories, a subset of the codes, and our own descriptions.
"""

import datetime
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TypeVar

from kbo_pipeline.core.tables import divisions
from kbo_pipeline.sample.entities import FIRST_SNAPSHOT, MAX_ESTABLISHMENTS, Population, State

_Choice = TypeVar("_Choice")

Value = str | datetime.date | None
Values = tuple[Value, ...]
Rows = Sequence[Values]
"""Rows of one key, without the key; a tuple is one of `BUNDLES`, which many keys share."""
BUNDLES = 2048

RowsOf = Callable[[Population, int, State, int], Rows]
"""The rows of an entity in one table, by its index, its state, and its place if it is a unit."""

CodeRow = tuple[str, str, str, str]


_LISTS: dict[str, tuple[tuple[str, str, str], ...]] = {  # category: code, French, Dutch
    "ActivityGroup": (
        ("001", "Activités assujetties", "Btw-plichtige activiteiten"),
        ("003", "Activités générales", "Algemene activiteiten"),
        ("006", "Activités d'employeur", "Werkgeversactiviteiten"),
    ),
    "Classification": (
        ("ANCI", "Auxiliaire", "Hulp"),
        ("MAIN", "Principale", "Hoofd"),
        ("SECO", "Secondaire", "Neven"),
    ),
    "ContactType": (
        ("EMAIL", "Courriel", "E-mail"),
        ("TEL", "Téléphone", "Telefoon"),
        ("WEB", "Site", "Website"),
    ),
    "EntityContact": (
        ("BRA", "Succursale", "Bijkantoor"),
        ("ENT", "Entité", "Entiteit"),
        ("EST", "Établissement", "Vestiging"),
    ),
    "Language": (
        ("0", "inconnue", "onbekend"),
        ("1", "français", "Frans"),
        ("2", "néerlandais", "Nederlands"),
        ("3", "allemand", "Duits"),
        ("4", "anglais", "Engels"),
    ),
    "Status": (("AC", "En activité", "In werking"),),
    "TypeOfAddress": (
        ("ABBR", "Adresse de succursale", "Adres van bijkantoor"),
        ("BAET", "Adresse d'établissement", "Adres van vestiging"),
        ("REGO", "Adresse du siège", "Adres van zetel"),
    ),
    "TypeOfDenomination": (
        ("001", "Nom", "Naam"),
        ("002", "Nom abrégé", "Verkorte naam"),
        ("003", "Nom commercial", "Handelsnaam"),
        ("004", "Nom de succursale", "Naam van bijkantoor"),
    ),
    "TypeOfEnterprise": (
        ("1", "Personne physique", "Natuurlijke persoon"),
        ("2", "Personne morale", "Rechtspersoon"),
    ),
}


JURIDICAL_FORMS = ("014", "015", "017", "116", "416", "610", "612", "706")
CAC_FORM = "616"
FOREIGN_FORM = "030"
JURIDICAL_SITUATIONS = ("000", "001", "012", "050", "091")
NACE_VERSIONS = ("2003", "2008", "2025")


@cache
def nace_codes(version: str) -> tuple[str, ...]:
    """Made-up NACE codes of a version: 5 and 7 digits, some with a leading zero."""
    step = {"2003": 373, "2008": 397, "2025": 389}[version]
    five = tuple(f"{number:05d}" for number in range(1110, 99_000, step))
    return tuple(sorted(five + tuple(f"{code}01" for code in five[::25])))


def code_rows(number: int) -> list[CodeRow]:
    """The whole code list of an extract, sorted as KBO sorts it.

    From extract to extract a description changes now and then, and a code comes and goes.
    """
    rows = [
        row
        for category, codes in _LISTS.items()
        for code, french, dutch in codes
        for row in ((category, code, "FR", french), (category, code, "NL", dutch))
    ]
    for category, codes in (
        ("JuridicalForm", (*JURIDICAL_FORMS, CAC_FORM, FOREIGN_FORM)),
        ("JuridicalSituation", JURIDICAL_SITUATIONS),
    ):
        words = (("DE", "Begriff"), ("FR", "Notion"), ("NL", "Begrip"))
        rows += [(category, c, language, f"{word} {c}") for c in codes for language, word in words]
    for version in NACE_VERSIONS:
        for code in nace_codes(version):
            rows.append((f"Nace{version}", code, "FR", f"Activité {code} ({version})"))
            rows.append((f"Nace{version}", code, "NL", f"Activiteit {code} ({version})"))
    for version, division, section in divisions():
        for code, french, dutch in (
            (division, "Division", "Afdeling"),
            (section, "Section", "Sectie"),
        ):
            rows.append((f"Nace{version}", code, "FR", f"{french} {code} ({version})"))
            rows.append((f"Nace{version}", code, "NL", f"{dutch} {code} ({version})"))
    rows.append(("Nace2025", "99000", "NL", f"Activiteit 99000, versie {number // 3}"))
    if number % 4 == 2:
        rows.append(("JuridicalForm", "999", "NL", "Rechtsvorm die komt en gaat"))
    return sorted(set(rows))  # a section has several divisions


SURNAMES = (
    *("Averbeke", "Bruynseels", "Cauwelaers", "Dehoutain", "Elsemans", "Fontigny", "Goossaert"),
    *("Hallemeersch", "Iserbyt", "Janquart", "Kerremeulen", "Lambrechon", "Moerdijck"),
    *("Noirfalise", "Oosterlinckx", "Pirsoulle", "Quatannens", "Roelandts-Wils", "Schotteel"),
    *("Thiriarte", "Uyttenhoek", "Verschaetse", "Wauterlée", "Yserbergh"),
    *("Zwaenepoele", "D'Hautcœur"),
)
FIRST_NAMES = (
    *("Adèle", "Bram", "Céleste", "Dries", "Éloïse", "Floor", "Gaëtan", "Hanne", "Ilias"),
    *("Jules", "Käthe", "Lotte", "Maxime", "Noor", "Océane", "Pieter", "Rik", "Sofie"),
    *("Théo", "Yasmina"),
)
TRADES = (
    *("Bakkerij", "Boulangerie", "Garage", "Bouwbedrijf", "Menuiserie", "Apotheek", "Pharmacie"),
    *("Brasserie", "Drukkerij", "Transports", "Tuincentrum", "Consulting", "Immobilière"),
    *("Kapsalon", "Bäckerei", "Elektro", "Fietsen", "Fromagerie", "Studio"),
    *("Interieur", "Schrijnwerkerij"),
)
PLACES = (  # zipcode, Dutch, French: made-up places, with codes of the real shape
    ("1005", "Zavelbeke", "Sablonrieu"),
    ("2017", "Scheldewaard", "Scheldewaard"),
    ("3099", "Dijlemonde", "Dylemonde"),
    ("4019", "Luikerhaag", "Haie-de-Liège"),
    ("5009", "Samberwoud", "Bois-sur-Sambre"),
    ("6010", "Zwartbergen", "Montnoir"),
    ("7015", "Henebos", "Boishennuyer"),
    ("8009", "Zeemeers", "Zeemeers"),
    ("9007", "Leieland", "Pays-sur-Lys"),
    ("4799", "Hochvennen", "Hautefagne"),
)
STREETS = (
    *(("Molenkouter", "Rue du Vieux Moulin"), ("Lindedreef", "Drève des Tilleuls")),
    *(("Kasseiberg", "Montée du Pavé"), ("Wolvenhoek", "Coin aux Loups")),
    *(("Appelgaard", "Verger d'en Haut"), ("Sint-Odradastraat", "Rue Sainte-Odrade")),
)
FOREIGN_SEATS = (  # country NL, country FR, zipcode, municipality NL, FR, street NL, FR
    ("Nederland", "Pays-Bas", "5701 SB", "Helmveen", "Helmveen", "Kanaalkade", "Kanaalkade"),
    ("Japan", "Japon", None, "Kawamizu, Chiba-ken", "Kawamizu", '2-3-1 "Midori"', "2-3-1"),
    ("Frankrijk", "France", "59099", "Rijsberg", "Mont-Brindille", "Kerkpad", "Sente du Clocher"),
    ("Luxemburg", "Luxembourg", "L-0999", "Moselheim", "Moselheim", "Um Bierg", "Um Bierg"),
)
TELEPHONE_ZONES = ("011", "016", "050", "065", "081", "087")
"""Of six digits after these, Belgium gives out none that begin with 0; the made-up ones do."""
AWKWARD_NAMES = (
    'Peeters, "De Gouden Haan" & Zonen, bv',
    "Backslash \\",
    "'; DROP TABLE enterprise; --",
    "=1+1",
    "Emoji 🚲 Fietsen 🇧🇪",
    "شركة بروكسل للتجارة",
    "Ünïcödé & Cie; l'Œuvre ‘à’ côté\ttab",
    ("Vereniging tot bevordering van zeer lange namen " * 7)[:300],
)
"""One legal person of each thousand has each of these as its name."""
_PLACE = (None, None, "1005", "Zavelbeke", "Sablonrieu")
AWKWARD_ADDRESSES = (  # all columns after TypeOfAddress
    (None, None, "0999", *_PLACE[3:], "Gebroken\nStraatnaam", "Rue\nCoupée", "1", *[None] * 3),
    (*_PLACE, "Kade\\", "Quai\\", "12-14 a", "A/0.01", None, None),
    (*_PLACE, "Kade", "Quai", "2", None, 'Blok C, "Toren", 1ste verdieping', None),
    (*_PLACE, "Kade", "Quai", "3", None, None, datetime.date(2019, 2, 28)),
    (None, None, None, "Zeemeers", "Zeemeers", None, None, None, None, "Boei 4", None),
)
AWKWARD_CONTACTS = (  # type, value
    ("FAX", "02/055.01.99"),
    ("TEL", " 050 00 00 00"),
    ("TEL", "050 00 00 01 "),
    ("EMAIL", "info@voorbeeld.example\t"),
    ("WEB", 'www.voorbeeld.example/?a=1,2&b="3"'),
)

_BELGIAN_PLACES = tuple((None, None, *place, *street) for place in PLACES for street in STREETS)

# The meaning of an entity's role in its block; the awkward values begin at role 0.
_LANGUAGE_OF_ROLE = {8: "0", 9: "1", 11: "3", 12: "4"}
_NAMELESS_ROLE = 13
_MANY_NAMES_ROLE = 14
_DATE_OF_ROLE = {5: datetime.date(1804, 3, 21), 6: FIRST_SNAPSHOT + datetime.timedelta(1)}


@dataclass(frozen=True, slots=True)
class Kind:
    """Enterprises, establishment units or branches.

    Attributes:
        indexes: the entities that can have some, in order.
        places: the places of those that an entity has.
        number: the number of the one at a place.
    """

    indexes: Callable[[Population], Iterable[int]]
    places: Callable[[Population, int, State], Sequence[int]]
    number: Callable[[Population, int, int], str]


def keyed_rows(population: Population, table: str, number: int) -> Iterator[tuple[str, Rows]]:
    """The rows of each key after an extract, in the order of keys; one pass for each kind."""
    for kind, rows_of in _PASSES[table]:
        entities = population.entities(kind.indexes(population), number)
        yield from _rows_of_entities(population, kind, rows_of, entities)


def sent_rows(population: Population, table: str, number: int) -> Iterator[tuple[str, Rows, Rows]]:
    """What an Update sends: key, rows before, rows after.

    As the real ones do, it also sends rows that did not change.
    """
    for kind, rows_of in _PASSES[table]:
        for index, *states in population.touched_entities(number):
            before, after = (
                dict(_rows_of_entities(population, kind, rows_of, [(index, state)]))
                for state in states
            )
            again = population.draw("again", index, number) % 4 == 0
            for key in sorted(before.keys() | after.keys()):
                old, new = before.get(key, ()), after.get(key, ())
                if again or old != new:
                    yield key, old, new


def _rows_of_entities(
    population: Population, kind: Kind, rows_of: RowsOf, entities: Iterable[tuple[int, State]]
) -> Iterator[tuple[str, Rows]]:
    for index, state in entities:
        if state.alive:
            for place in kind.places(population, index, state):
                if rows := rows_of(population, index, state, place):
                    yield kind.number(population, index, place), rows


def _enterprise(population: Population, index: int, state: State, _: int) -> Rows:
    draw = population.draw("enterprise", index)
    date = None if state.started else _DATE_OF_ROLE.get(population.role(index))
    date = date or population.start_date(draw >> 16, state.started)
    situation = _situation(population, index, state)
    if population.is_person(index):
        return [("AC", situation, "1", None, None, date)]
    form = FOREIGN_FORM if population.is_foreign(index) else _pick(JURIDICAL_FORMS, draw)
    return [("AC", situation, "2", form, CAC_FORM if form == "706" else None, date)]


def _situation(population: Population, index: int, state: State) -> str:
    if state.situation:
        return _pick(JURIDICAL_SITUATIONS, state.situation)
    one_of_twenty = (index + population.seed) % 20 == 0
    return _pick(JURIDICAL_SITUATIONS[1:], index // 20) if one_of_twenty else "000"


def _establishment(population: Population, index: int, state: State, place: int) -> Rows:
    draw = population.draw("establishment", index * MAX_ESTABLISHMENTS + place)
    date = population.start_date(draw, state.toggled[place] or state.started)
    return [(date, population.enterprise_number(index))]


def _branch(population: Population, index: int, state: State, _: int) -> Rows:
    date = population.start_date(population.draw("branch", index), state.started)
    return [(date, population.enterprise_number(index))]


def _enterprise_names(population: Population, index: int, state: State, _: int) -> Rows:
    draw = population.draw("name", index, state.name)
    if population.is_person(index):
        return [("0", "001", f"{_pick(SURNAMES, draw)}, {_pick(FIRST_NAMES, draw >> 8)}")]
    role = population.role(index)
    language = "12"[draw % 2]
    name = f"{_pick(TRADES, draw >> 4)} {_pick(SURNAMES, draw >> 12)} {draw % 997}"
    if role < len(AWKWARD_NAMES) and not state.name:
        return [(language, "001", AWKWARD_NAMES[role]), ("2", "002", "AFK")]
    if role in _LANGUAGE_OF_ROLE:
        return [(_LANGUAGE_OF_ROLE[role], "001", name)]
    if role == _NAMELESS_ROLE:
        return []
    if role == _MANY_NAMES_ROLE:
        return [("2", "001", name), ("2", "001", f"A{name}"), ("1", "001", f"{name} SRL")]
    rows = [(language, "001", name)]
    if draw % 10 < 4:
        rows.append(("21"[draw % 2], "001", f"{name} {'bv' if draw % 3 else 'srl'}"))
    if draw % 10 > 6:
        rows.append((language, "003", f"{_pick(TRADES, draw >> 20)} {draw % 89}"))
    return rows


def _establishment_names(population: Population, index: int, state: State, place: int) -> Rows:
    draw = population.draw("shop", index * MAX_ESTABLISHMENTS + place, state.name)
    return [("2", "003", f"{_pick(TRADES, draw)} {draw % 977}")] if draw % 100 < 40 else []


def _branch_names(population: Population, index: int, state: State, _: int) -> Rows:
    draw = population.draw("branch name", index, state.name)
    return [("124"[draw % 3], "004", f"{_pick(SURNAMES, draw >> 4)} Belgium {draw % 97}")]


def _seat(population: Population, index: int, state: State, _: int) -> Rows:
    if population.is_person(index):
        return []
    role = population.role(index)
    if role < len(AWKWARD_ADDRESSES) and not state.address:
        return [("REGO", *AWKWARD_ADDRESSES[role])]
    draw = population.draw("seat", index, state.address)
    if population.is_foreign(index):
        return [_address("REGO", _pick(FOREIGN_SEATS, index + state.address), draw)]
    return [_address("REGO", _pick(_BELGIAN_PLACES, draw), draw)]


def _establishment_address(population: Population, index: int, state: State, place: int) -> Rows:
    draw = population.draw("workplace", index * MAX_ESTABLISHMENTS + place, state.address)
    return [_address("BAET", _pick(_BELGIAN_PLACES, draw), draw)]


def _branch_address(population: Population, index: int, state: State, _: int) -> Rows:
    draw = population.draw("branch address", index, state.address)
    return [_address("ABBR", _pick(_BELGIAN_PLACES, draw), draw)]


def _address(kind: str, where: Values, draw: int) -> Values:
    box = f"bus {draw % 40}" if draw % 7 == 0 else None
    extra = "1ste verdieping, links" if draw % 211 == 0 else None
    struck_off = FIRST_SNAPSHOT - datetime.timedelta(draw % 999) if draw % 307 == 0 else None
    return (kind, *where, str((draw >> 8) % 340 + 1), box, extra, struck_off)


def _enterprise_contacts(population: Population, index: int, state: State, _: int) -> Rows:
    role = population.role(index)
    if role < len(AWKWARD_CONTACTS) and not state.contact:
        return [("ENT", *AWKWARD_CONTACTS[role])]
    draw = population.draw("contact", index, state.contact)
    return _contacts("ENT", draw) if draw % 100 < 26 else []


def _establishment_contacts(population: Population, index: int, state: State, place: int) -> Rows:
    if place:
        return []
    draw = population.draw("shop contact", index, state.contact)
    return _contacts("EST", draw) if draw % 100 < 5 else []


def _contacts(kind: str, draw: int) -> list[Values]:
    digits = f"0{draw // 100 % 100_000:05d}"
    telephone = f"{_pick(TELEPHONE_ZONES, draw >> 32)} {digits[:2]} {digits[2:4]} {digits[4:]}"
    rows: list[Values] = [(kind, "TEL", telephone)]
    if draw % 3 == 0:
        rows.append((kind, "EMAIL", f"info{draw % 9973}@voorbeeld.example"))
    return rows


def _enterprise_activities(population: Population, index: int, state: State, _: int) -> Rows:
    return _bundle(population.draw("activity", index, state.activity) % BUNDLES)


def _establishment_activities(population: Population, index: int, state: State, place: int) -> Rows:
    part = index * MAX_ESTABLISHMENTS + place
    return _bundle(population.draw("shop activity", part, state.activity) % BUNDLES)


@lru_cache(BUNDLES)
def _bundle(which: int) -> tuple[Values, ...]:
    """A set of activities that entities share; always with several MAIN ones."""
    draws = Population(0, 0, 0, (), 0)
    rows: dict[Values, None] = {}
    for position in range(2 + draws.draw("size", which) % 17):
        pick = draws.draw("bundle", which, position)
        version = NACE_VERSIONS[position % 3]
        code = _pick(nace_codes(version), pick)
        kind = "MAIN" if position < 3 else _pick(("SECO", "SECO", "MAIN", "ANCI"), pick >> 20)
        rows[_pick(("001", "003", "006"), pick >> 40), version, code, kind] = None
    return tuple(rows)


def _pick(choices: Sequence[_Choice], draw: int) -> _Choice:
    return choices[draw % len(choices)]


_ENTERPRISES = Kind(
    indexes=lambda population: range(population.slots),
    places=lambda *_: (0,),
    number=lambda population, index, _: population.enterprise_number(index),
)
_ESTABLISHMENTS = Kind(
    indexes=lambda population: range(population.slots),
    places=Population.open_places,
    number=Population.establishment_number,
)
_BRANCHES = Kind(
    indexes=Population.foreign_indexes,
    places=lambda population, index, _: (0,) if population.is_foreign(index) else (),
    number=lambda population, index, _: population.branch_number(index),
)

_PASSES: dict[str, tuple[tuple[Kind, RowsOf], ...]] = {
    "enterprise": ((_ENTERPRISES, _enterprise),),
    "establishment": ((_ESTABLISHMENTS, _establishment),),
    "denomination": (
        (_ENTERPRISES, _enterprise_names),
        (_ESTABLISHMENTS, _establishment_names),
        (_BRANCHES, _branch_names),
    ),
    "address": (
        (_ENTERPRISES, _seat),
        (_ESTABLISHMENTS, _establishment_address),
        (_BRANCHES, _branch_address),
    ),
    "contact": (
        (_ENTERPRISES, _enterprise_contacts),
        (_ESTABLISHMENTS, _establishment_contacts),
    ),
    "activity": (
        (_ENTERPRISES, _enterprise_activities),
        (_ESTABLISHMENTS, _establishment_activities),
    ),
    "branch": ((_BRANCHES, _branch),),
}
"""The kinds that have rows in a table, in the order of their numbers."""
