"""One published register, asked by many threads at once: each gets what a single one gets."""

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import pytest

from kbo_pipeline.core.errors import NotFoundError
from kbo_pipeline.read.register import PublishedRegister
from kbo_pipeline_tests.support.bakery import (
    BAKER,
    BRANCH,
    FOREIGN,
    LATE,
    MILL,
    OVEN,
    PERSON,
    SHOP,
    make_bakery,
)
from kbo_pipeline_tests.support.core import Core

THREADS = 64

Question = Callable[[PublishedRegister], Any]

NUMBERS = "SELECT * FROM range($first, $last) ORDER BY 1"  # more rows than DuckDB gives at a time


def _enterprise(number: str, at: int, language: Any) -> Question:
    def ask(register: PublishedRegister) -> Any:
        try:
            return register.enterprise(number, at, language).to_json()
        except NotFoundError as error:
            return str(error)

    return ask


def _in_two_steps(register: PublishedRegister) -> Any:
    connection = register.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE mine AS SELECT * FROM enterprise_at(141)")
    connection.execute("SELECT * FROM mine ORDER BY ALL")
    return connection.fetchall()


def _in_pieces(register: PublishedRegister) -> Any:
    relation = register.sql(NUMBERS, first=0, last=20_000)
    names = register.state("denomination", 140).order("entity_number, denomination")
    first = names.fetchone()
    changes = register.changes(141)
    return (
        relation.fetchone(),
        next(changes),
        register.find("celeste"),
        relation.fetchall(),
        [first, *names.fetchall()],
        list(changes),
    )


QUESTIONS: list[Question] = [
    *(
        _enterprise(number, at, language)
        for number in (BAKER, PERSON, FOREIGN, LATE, SHOP, MILL, OVEN, BRANCH, "0403.449.823")
        for at in (140, 141, 142)
        for language in ("nl", "fr", "de")
    ),
    *(
        lambda register, text=text: register.find(text)
        for text in ("celeste", "bakkerij", "gouden korst", "crumbs", "anna", "laatkomer")
    ),
    lambda register: register.find(zipcode="1005"),
    lambda register: register.find(nace="47", zipcode="2017"),
    *(lambda register, n=n: list(register.changes(n)) for n in (140, 141, 142)),
    *(lambda register, n=n: register.count_changes(n) for n in (140, 141, 142)),
    *(lambda register, n=n: sorted(register.changed_entities(n).fetchall()) for n in (141, 142)),
    *(
        lambda register, t=table, n=n: sorted(register.state(t, n).fetchall(), key=repr)
        for table in ("enterprise", "denomination", "address", "activity", "code")
        for n in (140, 142)
    ),
    lambda register: register.state("address").filter("zipcode = '1005'").count("*").fetchall(),
    lambda register: register.sql("FROM denomination_at($n) ORDER BY ALL", n=141).fetchall(),
    lambda register: register.sql('SELECT * FROM "current".enterprise_profile').df().to_csv(),
    lambda register: register.connection.execute('FROM "current".source').fetchall(),
    _in_two_steps,
    _in_pieces,
]


@pytest.fixture(scope="module")
def bakery(tmp_path_factory: pytest.TempPathFactory) -> Core:
    return make_bakery(tmp_path_factory.mktemp("bakery"))


@pytest.fixture(scope="module")
def register(bakery: Core) -> Iterator[PublishedRegister]:
    with bakery.read_register() as register:
        yield register


@pytest.mark.parametrize(
    "times", [300, pytest.param(10_000, marks=(pytest.mark.long, pytest.mark.rare))]
)
def test_64_threads_get_what_a_single_one_gets(register: PublishedRegister, times: int) -> None:
    expected = [ask(register) for ask in QUESTIONS]
    assert len({repr(answer) for answer in expected}) > 60  # mixing them up would be seen
    order = list(itertools.islice(itertools.cycle(range(len(QUESTIONS))), times))
    random.Random(times).shuffle(order)
    begin = threading.Barrier(THREADS)

    def ask(first: int) -> list[int]:
        """Asks its share; which questions were answered wrongly."""
        begin.wait()
        share = order[first::THREADS]
        return [place for place in share if QUESTIONS[place](register) != expected[place]]

    with ThreadPoolExecutor(THREADS) as threads:
        assert [*threads.map(ask, range(THREADS))] == [[]] * THREADS


def test_a_relation_may_be_read_by_another_thread_than_made_it(register: PublishedRegister) -> None:
    def make(count: int) -> duckdb.DuckDBPyRelation:
        return register.sql(f"SELECT * FROM range({count}) t(n)").filter("n % 2 = 0").order("n")

    counts = range(10_000, 10_040)
    with ThreadPoolExecutor(4) as makers:
        made = [*makers.map(make, counts)]
    with ThreadPoolExecutor(8) as readers:  # the makers have ended
        results = readers.map(lambda relation: relation.fetchall(), made)
        for count, rows in zip(counts, results, strict=True):
            assert rows == [(n,) for n in range(0, count, 2)]


def test_each_thread_has_a_connection_of_its_own_and_keeps_it(register: PublishedRegister) -> None:
    mine = register.connection
    assert register.connection is mine
    with ThreadPoolExecutor(1) as other:
        its = other.submit(lambda: register.connection).result()
        assert other.submit(lambda: register.connection).result() is its
    assert its is not mine


def test_what_a_connection_was_asked_is_not_disturbed_by_other_questions(
    register: PublishedRegister,
) -> None:
    rows = register.connection.execute(NUMBERS, {"first": 0, "last": 50_000})
    assert rows.fetchone() == (0,)
    assert register.enterprise(BAKER).number == BAKER
    assert [match.enterprise_number for match in register.find("gouden korst")] == [BAKER]
    assert sum(register.count_changes(141).values()) > 0
    assert rows.fetchall() == [(n,) for n in range(1, 50_000)]


def test_a_closed_register_answers_nobody(bakery: Core) -> None:
    register = bakery.read_register()
    relation, connection = register.state("enterprise"), register.connection
    register.close()
    for ask in (
        relation.fetchall,
        lambda: connection.execute("SELECT 1"),
        lambda: register.connection.execute("SELECT 1"),
        lambda: register.enterprise(BAKER),
        lambda: register.find("celeste"),
        lambda: list(register.changes(141)),
    ):
        with pytest.raises(duckdb.ConnectionException, match="closed"):
            ask()
