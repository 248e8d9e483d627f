"""Arguments and settings that are wrong."""

from pathlib import Path

from kbo_pipeline_tests.tools.bad_input.cases import Case, command_case, update


def command_cases() -> list[Case]:
    """The cases of this module."""
    return [*_arguments(), *_settings()]


def _arguments() -> list[Case]:
    keys = [
        *(
            "140-full",
            "0141-Update",
            "0141",
            "latest",
            "0141-update-0001",
            "0141-update,0142-update",
        ),
        *("../0141-update", "0141-update; DROP TABLE enterprise", "0141-update\n", "%00", ""),
    ]
    return [
        *(command_case(f"kbo retry {key!a}", "retry", key) for key in keys),
        *(
            command_case(f"kbo {command} '../../x'", command, "../../x")
            for command in ("status", "cancel", "rollback", "fetch")
        ),
        command_case("kbo rollback of an extract that nobody knows", "rollback", "0999-update"),
        command_case("kbo retry of an extract that nobody knows", "retry", "0999-update"),
        command_case("kbo cancel of an extract that nobody knows", "cancel", "0999-update"),
        command_case("kbo import without a ZIP", "import"),
        command_case("kbo import of a web address", "import", "https://example.org/x.zip"),
        command_case("a command that is none", "imprt"),
        command_case("an option that is none", "status", "--jsn"),
        command_case("kbo fetch without an account", "fetch"),
    ]


def _settings() -> list[Case]:
    values = [
        *(("KBO_BATCH_ROWS", text) for text in ("0", "-1", "many", "1e3", "1.5", "\u0661")),
        *(("KBO_MAX_BATCHES", text) for text in ("0", "65536000")),
        *(("KBO_POLL_SECONDS", text) for text in ("0", "soon")),
        *(("KBO_UI_PORT", text) for text in ("0", "70000", "80; ls")),
        *(("KBO_KEEP_PUBLISHED", text) for text in ("0", "two")),
        *(("KBO_KEEP_EXTRACTS", "-5"), ("KBO_KEEP_ZIPS_DAYS", "x"), ("KBO_STALE_HOURS", "")),
        *(("KBO_MEMORY_MB", text) for text in ("0", "1023", "4GB")),
        *(("KBO_PRIVACY", text) for text in ("none", "FULL")),
        *(("KBO_PORTAL_URL", text) for text in ("ftp://example.org", "http://example.org", "x")),
        ("KBO_PORTAL_URL", "https://name:secret@example.org"),
        ("KBO_ALERT_WEBHOOK", "javascript:alert(1)"),
        ("KBO_DATABASE", "md:two words"),
        ("KBO_DATABASE", "DIR"),
        ("KBO_DATABASE", "DIR/a?b.duckdb"),
        ("KBO_DATA_DIR", "DIR/a\nb"),
        ("KBO_DATA_DIR", "DIR/a?b"),
        ("KBO_DATA_DIR", "~nobody-of-that-name/data"),
        ("DAGSTER_POSTGRES_URL", "mysql://name:secret@localhost/x"),
        ("DAGSTER_POSTGRES_URL", "secret"),
        ("KBO_BATCHROWS", "1000"),
        ("KBO_SOMETHING", "x"),
    ]

    def imported(directory: Path) -> tuple[str | Path, ...]:
        return ("import", update(directory))

    return [
        Case(f"{name}={ascii(value)[1:-1]}", imported, {name: value})
        for name, value in values
        if value
    ]
