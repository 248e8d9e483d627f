"""The fixed words of the pages, in the languages of those who read them."""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from kbo_pipeline.read.types import Language

Reader = Literal["nl", "fr", "de", "en"]
"""Languages of the pages."""

READERS: tuple[Reader, ...] = get_args(Reader)

_WORDS: Mapping[str, tuple[str, str, str, str]] = {
    "title": (
        "Ondernemingsregister",
        "Registre des entreprises",
        "Unternehmensregister",
        "Company register",
    ),
    "search": ("Zoeken", "Rechercher", "Suchen", "Search"),
    "what": (
        "Naam of ondernemingsnummer",
        "Nom ou numéro d'entreprise",
        "Name oder Unternehmensnummer",
        "Name or enterprise number",
    ),
    "zipcode": ("Postcode", "Code postal", "Postleitzahl", "Postcode"),
    "hits": ("Gevonden", "Résultats", "Gefunden", "Found"),
    "nothing": ("Niets gevonden.", "Aucun résultat.", "Nichts gefunden.", "Nothing found."),
    "near": (
        "Niets is precies zo geschreven; dit lijkt erop:",
        "Rien n'est écrit exactement ainsi ; ceci y ressemble :",
        "Nichts ist genau so geschrieben; dies ist ähnlich:",
        "Nothing is written so; this is near:",
    ),
    "more": (
        "Er zijn er meer: maak de vraag preciezer.",
        "Il y en a d'autres : précisez la question.",
        "Es gibt mehr: fragen Sie genauer.",
        "There are more: ask more precisely.",
    ),
    "number": ("Nummer", "Numéro", "Nummer", "Number"),
    "name": ("Naam", "Nom", "Name", "Name"),
    "place": ("Plaats", "Lieu", "Ort", "Place"),
    "found_as": ("Gevonden als", "Trouvé comme", "Gefunden als", "Found as"),
    "vat_number": ("Btw-nummer", "Numéro de TVA", "MwSt.-Nummer", "VAT number"),
    "status": ("Status", "Statut", "Status", "Status"),
    "situation": ("Toestand", "Situation", "Lage", "Situation"),
    "type": ("Soort", "Type", "Art", "Type"),
    "form": ("Rechtsvorm", "Forme juridique", "Rechtsform", "Legal form"),
    "start_date": ("Begonnen op", "Depuis le", "Begonnen am", "Started on"),
    "seat": ("Zetel", "Siège", "Sitz", "Seat"),
    "map": ("kaart", "carte", "Karte", "map"),
    "struck_off": ("geschrapt op", "radiée le", "gestrichen am", "struck off on"),
    "names": ("Namen", "Noms", "Namen", "Names"),
    "addresses": ("Adressen", "Adresses", "Adressen", "Addresses"),
    "contacts": ("Contact", "Contact", "Kontakt", "Contact"),
    "activities": ("Activiteiten", "Activités", "Tätigkeiten", "Activities"),
    "establishments": (
        "Vestigingseenheden",
        "Unités d'établissement",
        "Niederlassungseinheiten",
        "Establishment units",
    ),
    "branches": ("Bijkantoren", "Succursales", "Zweigniederlassungen", "Branches"),
    "history": ("Geschiedenis", "Historique", "Geschichte", "History"),
    "all": ("Alles tonen", "Tout afficher", "Alles zeigen", "Show all"),
    "added": ("toegevoegd", "ajouté", "hinzugefügt", "added"),
    "removed": ("verwijderd", "supprimé", "entfernt", "removed"),
    "changed": ("gewijzigd", "modifié", "geändert", "changed"),
    "enterprise": ("onderneming", "entreprise", "Unternehmen", "enterprise"),
    "establishment": (
        "vestigingseenheid",
        "unité d'établissement",
        "Niederlassungseinheit",
        "establishment unit",
    ),
    "denomination": ("naam", "nom", "Name", "name"),
    "address": ("adres", "adresse", "Adresse", "address"),
    "contact": ("contact", "contact", "Kontakt", "contact"),
    "activity": ("activiteit", "activité", "Tätigkeit", "activity"),
    "branch": ("bijkantoor", "succursale", "Zweigniederlassung", "branch"),
    "permalink": (
        "Vaste link naar deze toestand",
        "Lien permanent vers cet état",
        "Dauerhafter Link zu diesem Stand",
        "Permanent link to this state",
    ),
    "at": ("Toestand bij", "État à", "Stand bei", "State at"),
    "newest": ("Nieuwste toestand", "État le plus récent", "Neuester Stand", "Newest state"),
    "proven": (
        "gelijk aan de volledige lijst van de KBO op",
        "identique au fichier complet de la BCE le",
        "gleich dem Gesamtbestand der ZDU am",
        "equal to KBO's Full on",
    ),
    "programs": ("Voor programma's", "Pour programmes", "Für Programme", "For programs"),
}


class Words:
    """The fixed words in one language, by name; `data` is the language of codes beside them."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.data: Language = "nl" if reader == "en" else reader
        place = READERS.index(reader)
        self._words = {name: texts[place] for name, texts in _WORDS.items()}

    def __getitem__(self, name: str) -> str:
        return self._words[name]


def reader_of(accepted: str) -> Reader:
    """The first of our languages in an `Accept-Language`; English where there is none."""
    return next(_known(accepted), "en")


def _known(accepted: str) -> Iterator[Reader]:
    for part in accepted.lower().split(","):
        primary = part.strip()[:2]
        yield from (reader for reader in READERS if reader == primary)
