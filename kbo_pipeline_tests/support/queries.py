"""GraphQL that costs too much, and some that changes or follows something."""

from kbo_pipeline.operate.processes.webserver import (
    MAX_ALIASES,
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_FIELDS,
    MAX_TOKENS,
)

POOL = "canary"
CHANGE = f'mutation {{ setConcurrencyLimit(concurrencyKey: "{POOL}", limit: 3) }}'
LIMITS = "{ instance { concurrencyLimits { concurrencyKey } } }"
EVENTS = 'subscription { pipelineRunLogs(runId: "none") { __typename } }'


def many(count: int, text: str) -> str:
    return " ".join(text.replace("#", str(number)) for number in range(count))


COSTLY = {
    "aliases": "{" + many(MAX_ALIASES + 1, "a#: version") + "}",
    "aliases in a fragment": "{" + many(10, "...F") + "} fragment F on Query {"
    f"{many(MAX_ALIASES // 10 + 1, 'a#: version')}}}",
    "fields": "{" + many(MAX_FIELDS + 1, "version") + "}",
    "fields in a fragment": "{" + many(100, "...F") + "} fragment F on Query {"
    f"{many(MAX_FIELDS // 100 + 1, 'version')}}}",
    "fields by doubling": "{...F0}"
    + "".join(f"fragment F{n} on Query {{...F{n + 1} ...F{n + 1}}}" for n in range(20))
    + "fragment F20 on Query {version}",
    "depth": "{ a " * (MAX_DEPTH + 1) + "}" * (MAX_DEPTH + 1),
    "depth by inline fragments": "{" + "... {" * 150 + "version" + "}" * 151,
    "depth beyond any parser": "{ a " * 5000 + "}" * 5000,
    "tokens": "query Q(" + many(MAX_TOKENS // 4 + 1, "$a#:B") + "){version}",
    "characters": "{version} #" + MAX_CHARACTERS * "x",
}
