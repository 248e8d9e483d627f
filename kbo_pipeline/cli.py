"""`kbo`: the entry. What its commands do is in `commands/`, a module a subject."""

import click

from kbo_pipeline.commands import export, imports, operate, read
from kbo_pipeline.commands.group import Commands
from kbo_pipeline.commands.status import status


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kbo_pipeline")
def main() -> None:
    """Keeps Belgium's company register (KBO Open Data) complete and current on this machine.

    Settings come from the environment and from a .env file; docs/operating.md lists them.
    """
    from kbo_pipeline.core.environment import open_secrets

    if (line := open_secrets()) is not None:
        click.echo(f"kbo: warning: {line}", err=True)


for _command in (
    *(read.show, read.find, read.changes, export.export, export.verify, export.copy_register),
    *(imports.import_command, imports.fetch, imports.retry, imports.publish, imports.cancel),
    *(imports.rollback, operate.start, status, operate.pause, operate.resume),
    *(operate.doctor, operate.rebuild, operate.sample),
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
