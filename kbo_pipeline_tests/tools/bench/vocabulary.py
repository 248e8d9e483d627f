"""Made-up names as varied as real ones: hundreds of thousands of them, some nearly alike.

Words are put together from syllables, so that no list of real names is needed. Names like these
are what makes a search hard: `Janssens` and `Jansens`, one trade with a hundred surnames, `De
Gouden Haan` in ten villages.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

_STEMS = (
    *("Jan", "Peet", "Will", "Mert", "Claes", "Wout", "Goos", "Maer", "Verm", "Dier", "Lam"),
    *("Corn", "Mich", "Hend", "Desm", "Rooz", "Lint", "Brug", "Kerk", "Veld", "Bogh", "Stev"),
    *("Aert", "Thys", "Smed", "Coel", "Pauw", "Mart", "Segh", "Goev", "Bert", "Dup", "Lef"),
    *("Renn", "Gill", "Moul", "Font", "Lav", "Char", "Del", "Noir", "Roch", "Wal", "Simm"),
)
_ENDS = (
    *("sens", "ers", "ssens", "ens", "mans", "aert", "eers", "ans", "aerts", "elmans", "inck"),
    *("ont", "eau", "evre", "ier", "in", "ard", "oux", "ot", "et", "is", "el", "elaere", "ijck"),
)
_MIDDLES = (*("",) * 6, "el", "er", "ing", "em", "ol", "ar", "und", "ic", "ep", "ov", "al", "ut")
_BEFORE = (*("",) * 14, "Van ", "De ", "Van den ", "Vande", "D'", "Le ", "Du ")
_FIRST_NAMES = (
    *("Anna", "Bram", "Céline", "Dirk", "Éric", "Fatima", "Gert", "Hélène", "Ilse", "Jef", "Koen"),
    *("Agnès", "Bart", "Chantal", "Daan", "Els", "Frank", "Geert", "Hugo", "Inge", "Joris"),
    *("Karel", "Laurent", "Mehmet", "Nathalie", "Oscar", "Patrick", "Rita", "Stijn", "Thierry"),
    *("Ursula", "Vincent", "Walter", "Yasmine", "Benoît", "Carine", "Dominique", "Emiel", "Fien"),
    *("Lieve", "Marc", "Nele", "Olivier", "Pieter", "Quinten", "René", "Sofie", "Tom", "Ugo"),
    *("Véronique", "Wim", "Xavier", "Yves", "Zoë", "Jean-Pierre", "Marie-Claire", "An", "Ahmed"),
)
_TRADES = (  # in Dutch and French
    *(("Bakkerij", "Boulangerie"), ("Slagerij", "Boucherie"), ("Apotheek", "Pharmacie")),
    *(("Garage", "Garage"), ("Bouwbedrijf", "Construction"), ("Schrijnwerkerij", "Menuiserie")),
    *(("Drukkerij", "Imprimerie"), ("Kapsalon", "Coiffure"), ("Tuinaanleg", "Jardins")),
    *(("Immo", "Immobilière"), ("Transport", "Transports"), ("Dakwerken", "Toitures")),
    *(("Schilderwerken", "Peinture"), ("Frituur", "Friterie"), ("Bloemen", "Fleurs")),
    *(("Loodgieterij", "Plomberie"), ("Elektriciteit", "Électricité"), ("Optiek", "Optique")),
    *(("Tandarts", "Dentiste"), ("Boekhouding", "Comptabilité"), ("Verzekeringen", "Assurances")),
    *(("Boerderij", "Ferme"), ("Wasserij", "Blanchisserie"), ("Juwelier", "Bijouterie")),
    *(("Schoenen", "Chaussures"), ("Meubelen", "Meubles"), ("Brouwerij", "Brasserie")),
    *(("Rijschool", "Auto-école"), ("Fietsen", "Cycles"), ("Keukens", "Cuisines")),
)
_SYLLABLES = (
    *("al", "ar", "ba", "ber", "ca", "cel", "da", "del", "dra", "e", "fa", "fi", "ga", "gen"),
    *("ha", "he", "i", "ka", "ko", "la", "li", "lo", "ma", "mi", "mo", "na", "ne", "no", "o"),
    *("pa", "pri", "qui", "ra", "ri", "ro", "sa", "si", "so", "sta", "ta", "te", "tri", "u"),
    *("va", "ve", "vi", "xa", "xi", "ya", "ze", "zo"),
)
_LAST_SYLLABLES = ("ra", "nis", "tec", "lis", "nova", "tix", "mar", "co", "dex", "lia", "rion", "s")
_KINDS = (
    *("Consulting", "Group", "Invest", "Services", "Belgium", "Holding", "Solutions", "Projects"),
    *("Management", "Trading", "Partners", "Engineering", "Design", "Logistics", "International"),
)
_ADJECTIVES = (
    "Gouden",
    "Oude",
    "Nieuwe",
    "Zwarte",
    "Witte",
    "Blauwe",
    "Rode",
    "Kleine",
    "Vrolijke",
)
_NOUNS = ("Haan", "Ster", "Leeuw", "Molen", "Kroon", "Vos", "Zwaan", "Linde", "Poort", "Sleutel")
_PLACE_ENDS = (
    "beke",
    "gem",
    "hem",
    "le",
    "zele",
    "ville",
    "court",
    "hove",
    "dorp",
    "kerke",
    "sart",
)
_STREETS = ("Kerk", "Molen", "School", "Stations", "Nieuw", "Dorps", "Linden", "Veld", "Kasteel")
_SAINTS = ("Cecilia", "Jozef", "Martinus", "Barbara", "Jan", "Pieter", "Anna")

FORMS = (  # KBO's code, in Dutch, in French, with dots
    ("014", "NV", "SA", "N.V."),
    ("610", "BV", "SRL", "B.V."),
    ("015", "BVBA", "SPRL", "B.V.B.A."),
    ("017", "VZW", "ASBL", "v.z.w."),
    ("706", "CV", "SC", "C.V."),
    ("612", "CommV", "SComm", "Comm. V"),
    ("011", "VOF", "SNC", "V.O.F."),
)
_FORM_SHARES = (18, 45, 8, 12, 4, 7, 6)


@dataclass(frozen=True, slots=True)
class Enterprise:
    """A made-up enterprise.

    Attributes:
        form: one of `FORMS`; None for a natural person.
        name: its own.
        other: in French, where it has one in two languages.
        unit: the trade name of its unit, where that has one.
    """

    form: tuple[str, str, str, str] | None
    name: str
    other: str | None
    unit: str | None
    zipcode: str
    municipality: str
    street: str
    house_number: str


class Vocabulary:
    """Makes enterprises; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        """Takes the seed."""
        self._random = random.Random(seed)
        pick = self._random.choice
        self._places = [
            (f"{1000 + 9 * n}", pick(_STEMS) + pick(("", "e", "er", "els")) + pick(_PLACE_ENDS))
            for n in range(900)
        ]
        self._patterns: dict[Callable[[], tuple[str, str | None]], int] = {
            self._trade: 24,
            self._family: 10,
            self._invented: 20,
            self._invented_of_kind: 18,
            self._inn: 7,
            self._initials: 7,
            self._numbered: 4,
            self._partners: 6,
            self._club: 4,
        }

    def enterprise(self) -> Enterprise:
        """The next one."""
        at_random, pick = self._random.random, self._random.choice
        form = None
        if at_random() < 0.4:
            name, other = f"{self.surname()}, {pick(_FIRST_NAMES)}", None
        else:
            form = self._random.choices(FORMS, _FORM_SHARES)[0]
            name, other = self.legal_name()
            if at_random() < 0.12:
                name = f"{name} {pick(form[1:])}"
        unit = self.legal_name()[0] if at_random() < 0.25 else None
        zipcode, municipality = pick(self._places)
        street = f"{pick(_STREETS)}{pick(('straat', 'laan', 'weg', 'plein'))}"
        house = str(self._random.randint(1, 300))
        return Enterprise(form, name, other, unit, zipcode, municipality, street, house)

    def legal_name(self) -> tuple[str, str | None]:
        """A name of an undertaking, and where it has one, that in French."""
        patterns = self._patterns
        return self._random.choices(list(patterns), list(patterns.values()))[0]()

    def surname(self) -> str:
        """A surname; there are some hundred thousand."""
        pick = self._random.choice
        return f"{pick(_BEFORE)}{pick(_STEMS)}{pick(_MIDDLES)}{pick(_ENDS)}"

    def word(self) -> str:
        """An invented word; there are some hundred thousand."""
        pick, count = self._random.choice, self._random.randint(1, 3)
        return ("".join(pick(_SYLLABLES) for _ in range(count)) + pick(_LAST_SYLLABLES)).title()

    def _trade(self) -> tuple[str, str | None]:
        dutch, french = self._random.choice(_TRADES)
        rest = self.surname()
        if self._random.random() < 0.3:
            rest = f"{self._random.choice(_FIRST_NAMES)} {rest}"
        is_both = dutch != french and self._random.random() < 0.4
        return f"{dutch} {rest}", f"{french} {rest}" if is_both else None

    def _family(self) -> tuple[str, str | None]:
        name = self.surname()
        dutch, french = self._random.choice((("& Zonen", "& Fils"), ("Gebroeders", "Frères")))
        is_both = self._random.random() < 0.3
        trade = self._random.choice(_TRADES)
        return f"{trade[0]} {name} {dutch}", f"{trade[1]} {name} {french}" if is_both else None

    def _invented(self) -> tuple[str, str | None]:
        return self.word() + self.word().lower(), None

    def _invented_of_kind(self) -> tuple[str, str | None]:
        return f"{self.word()} {self._random.choice(_KINDS)}", None

    def _inn(self) -> tuple[str, str | None]:
        pick = self._random.choice
        return f"{pick(('De', 'Den', 'In de'))} {pick(_ADJECTIVES)} {pick(_NOUNS)}", None

    def _initials(self) -> tuple[str, str | None]:
        letters = self._random.choices("ABCDEFGHJKLMNPRSTVW", k=self._random.randint(2, 3))
        joined = self._random.choice(("", "."))
        initials = joined.join(letters) + joined
        return f"{initials} {self._random.choice(_TRADES)[0]} {self.surname()}", None

    def _numbered(self) -> tuple[str, str | None]:
        return f"{self.word()} {self._random.randint(2, 2099)}", None

    def _partners(self) -> tuple[str, str | None]:
        return f"{self.surname()} - {self.surname()} {self._random.choice(_KINDS)}", None

    def _club(self) -> tuple[str, str | None]:
        pick = self._random.choice
        kind = pick(("Koninklijke Harmonie", "Vriendenkring", "Turnkring", "Toneelkring"))
        return f"{kind} Sint-{pick(_SAINTS)} {pick(self._places)[1]}", None
