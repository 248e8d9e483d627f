"""The vocabulary of made-up extracts: codes, names, addresses, and values that trip importers.

The code list has the real categories, a subset of the codes, and our own descriptions.
"""

import datetime
from functools import cache

from kbo_pipeline.core.tables import divisions

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
        ("JuridicalForm", (*JURIDICAL_FORMS, FOREIGN_FORM)),
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
    *(
        "Hallemeersch",
        "Iserbyt",
        "Janquart",
        "Kerremeulen",
        "Lambrechon",
        "Moerdijck",
        "Noirfalise",
    ),
    *("Oosterlinckx", "Pirsoulle", "Quatannens", "Roelandts-Wils", "Schotteel", "Thiriarte"),
    *("Uyttenhoek", "Verschaetse", "Wauterlée", "Yserbergh", "Zwaenepoele", "D'Hautcœur"),
)
FIRST_NAMES = (
    *("Adèle", "Bram", "Céleste", "Dries", "Éloïse", "Floor", "Gaëtan", "Hanne", "Ilias", "Jules"),
    *("Käthe", "Lotte", "Maxime", "Noor", "Océane", "Pieter", "Rik", "Sofie", "Théo", "Yasmina"),
)
TRADES = (
    *("Bakkerij", "Boulangerie", "Garage", "Bouwbedrijf", "Menuiserie", "Apotheek", "Pharmacie"),
    *(
        "Brasserie",
        "Drukkerij",
        "Transports",
        "Tuincentrum",
        "Consulting",
        "Immobilière",
        "Kapsalon",
    ),
    *("Bäckerei", "Elektro", "Fietsen", "Fromagerie", "Studio", "Interieur", "Schrijnwerkerij"),
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
