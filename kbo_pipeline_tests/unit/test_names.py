"""How names are folded and compared."""

from itertools import pairwise

import pytest

from kbo_pipeline.read.names import FORMS, edits_of, fold, form_of_code, likeness, name_of


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ('Peeters, "De Gouden Haan" & Zonen', "peeters de gouden haan zonen"),
        ("S.A. L'Œuvre d'Or", "sa l oeuvre d or"),
        ("'t Hoekje N.V.", "t hoekje nv"),
        ("Jan’s Straße", "jans strasse"),
        ("A.B.C.-Bouw", "abc bouw"),
        ("N V", "nv"),
        ("ÉÉN Ünïcödé Łódź", "een unicode lodz"),
        ("4-all 2000", "4 all 2000"),
        ("شركة بروكسل", "شركة بروكسل"),
        ("🚲 --", ""),
        ("_under_score_", "under score"),
    ],
)
def test_a_text_is_folded(text: str, folded: str) -> None:
    assert fold(text) == folded
    assert fold(folded) == folded


@pytest.mark.parametrize(
    ("text", "words", "form"),
    [
        ("Bakkerij Peeters N.V.", ("bakkerij", "peeters"), "nv"),
        ("S.A. Boulangerie Céleste", ("boulangerie", "celeste"), "nv"),
        ("Maison Dupont sprl", ("maison", "dupont"), "bv"),
        ("Peeters en Zonen Comm. V", ("peeters", "zonen"), "commv"),
        ("Peeters & Fils SNC", ("peeters", "fils"), "vof"),
        ("De Kring v.z.w.", ("de", "kring"), "vzw"),
        ("SC Gent", ("gent",), "cv"),
        ("De NV bouwers", ("de", "nv", "bouwers"), None),
        ("NV", ("nv",), None),
        ("en", ("en",), None),
        ("", (), None),
    ],
)
def test_the_legal_form_is_taken_off(text: str, words: tuple[str, ...], form: str | None) -> None:
    name = name_of(text)
    assert (name.words, name.form) == (words, form)


def test_each_code_and_word_belongs_to_one_form() -> None:
    for part in (0, 1):
        values = [value for form in FORMS.values() for value in form[part]]
        assert len(values) == len({*values})
    assert form_of_code("014") == name_of("x sa").form == "nv"
    assert form_of_code("015") == form_of_code("610") == name_of("x srl").form == "bv"
    assert form_of_code("411") is form_of_code(None) is None


def test_long_words_may_be_further_off_than_short_ones() -> None:
    assert [edits_of(word) for word in ("bv", "bouw", "bakkerij", "12345678")] == [0, 1, 2, 0]


def likeness_of(text: str, name: str) -> float:
    return likeness(name_of(text).words, name_of(name).words)


@pytest.mark.parametrize(
    ("text", "names"),
    [  # the names from the most to the least alike
        ("bakkerij peeters", ["Bakkerij Peeters", "Bakkerij Peters", "Bakkerij Pauwels"]),
        ("peeters bakkerij", ["Peeters Bakkerij", "Bakkerij Peeters", "Bakkerij Peters"]),
        ("bakkerij pee", ["Bakkerij Pee", "Bakkerij Peeters", "Bakkerij Jansen"]),
        ("ster", ["Ster", "Sterren", "De Gouden Ster van Gent", "Rooster"]),
        ("jansens", ["Jansens", "Janssens", "Janssens en Zonen", "Peeters"]),
    ],
)
def test_what_is_more_alike_has_more(text: str, names: list[str]) -> None:
    scores = [likeness_of(text, name) for name in names]
    assert scores[0] == 1.0
    assert all(one > next_one for one, next_one in pairwise(scores)), scores


def test_only_the_same_letters_are_equal() -> None:
    assert likeness_of("Jan Sens", "Jansens N.V.") == 1.0
    assert likeness_of("sens jan", "Jan Sens") < 1.0
    assert likeness_of("", "Jan") == likeness_of("Jan", "") == 0.0
