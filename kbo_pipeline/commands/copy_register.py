"""`kbo copy-register`: parse, one call, print."""

import click


@click.command("copy-register")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
def copy_register(source: str, target: str) -> None:
    """Copy the published register from one place to another, and compare both.

    A place is a DuckDB file, ducklake:postgres:... (its files in KBO_DATABASE_FILES), md:NAME, or
    the word KBO_DATABASE for what that names. A password belongs into PGPASSWORD. All history comes
    along, and the ledger: KBO_DATABASE may name the copy from then on. Nothing may be at TO. A copy
    is there when its content has the hash of the original, and not before.
    """
    from kbo_pipeline.core.database import connect
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.publish import copy

    settings = load_settings()
    places = [settings.place(text) for text in (source, target)]
    with connect(settings) as connection:
        content = copy.copy_register(
            connection,
            places[0],
            places[1],
            privacy=settings.privacy,
            report=lambda line: click.echo(line, err=True),
        )
    click.echo(f"{places[0]} -> {places[1]}: equal, content {content}")
