"""The vocabulary of made-up extracts, and values that importers stumble over."""

import datetime

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
