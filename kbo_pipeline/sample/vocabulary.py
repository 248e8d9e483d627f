"""The made-up code list: the real categories, a subset of the codes, our own descriptions."""

from functools import cache

from kbo_pipeline.core.nace import divisions

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
