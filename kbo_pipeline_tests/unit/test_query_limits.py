"""What a query may cost, without a server: it is measured before it is begun, and ends in time."""

import time
from collections.abc import Iterator

import pytest
from graphql import (
    GraphQLError,
    GraphQLField,
    GraphQLInt,
    GraphQLList,
    GraphQLNonNull,
    GraphQLObjectType,
    GraphQLSchema,
    OperationDefinitionNode,
    get_introspection_query,
    graphql_sync,
)

from kbo_pipeline.operate.processes import webserver
from kbo_pipeline.operate.processes.webserver import (
    MAX_ALIASES,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_FIELDS,
    CostlyQueryError,
    read_query,
)
from kbo_pipeline_tests.support.queries import (
    CHANGE,
    COSTLY,
    EVENTS,
    LIMITS,
    many,
)


@pytest.mark.parametrize("what", COSTLY)
def test_a_costly_query_is_refused_in_no_time_with_what_it_has_too_much_of(what: str) -> None:
    began_at = time.process_time()
    with pytest.raises(CostlyQueryError) as refused:
        read_query(COSTLY[what])
    assert time.process_time() - began_at < 2
    assert str(refused.value).startswith("more than ")


@pytest.mark.parametrize(
    "document",
    [
        LIMITS,
        CHANGE,
        EVENTS,
        get_introspection_query(),
        "{" + many(MAX_ALIASES, "a#: version") + "}",
        "{" + many(MAX_FIELDS, "version") + "}",
        "{ a " * MAX_DEPTH + "}" * MAX_DEPTH,
        "{" + many(MAX_FIELDS // 2, "...F") + "} fragment F on Query {version version}",
        "{version} #" + (MAX_CHARACTERS - 11) * "x",
        "{...F} fragment F on Query {...G} fragment G on Query {...F}",  # refused by its rules
        "{...Nowhere}",
        "{ version: version }",
        "fragment F on Query { version }",
    ],
)
def test_what_is_within_the_limits_is_read_as_it_is(document: str) -> None:
    kinds = [type(definition) for definition in read_query(document).definitions]
    assert kinds.count(OperationDefinitionNode) <= 1


def test_each_operation_of_a_document_is_measured() -> None:
    wide = COSTLY["aliases"]
    with pytest.raises(CostlyQueryError):
        read_query(f"query A {LIMITS} query B {wide}")


@pytest.mark.parametrize("document", ["", "{", "no", "{ a } }", "\0"])
def test_what_is_no_query_is_said_to_be_none(document: str) -> None:
    with pytest.raises(GraphQLError):
        read_query(document)


def rows(*_: object) -> Iterator[dict[str, int]]:
    for number in range(1000):
        time.sleep(0.01)
        yield {"number": number}


def test_a_query_that_lasts_is_given_up() -> None:
    row = GraphQLObjectType("Row", {"number": GraphQLField(GraphQLNonNull(GraphQLInt))})
    found = GraphQLField(GraphQLNonNull(GraphQLList(GraphQLNonNull(row))), resolve=rows)
    schema = GraphQLSchema(GraphQLObjectType("Query", {"rows": found}))
    began_at = time.monotonic()
    middleware = [webserver._give_up_late]
    token = webserver._until.set(began_at + 0.3)
    try:
        late = graphql_sync(schema, "{ rows { number } }", middleware=middleware)
    finally:
        webserver._until.reset(token)
    assert time.monotonic() - began_at < 5
    assert late.data is None and late.errors is not None
    assert "takes longer than 60 s" in late.errors[0].message
    whole = graphql_sync(schema, "{ __typename }", middleware=middleware)
    assert (whole.data, whole.errors) == ({"__typename": "Query"}, None)
