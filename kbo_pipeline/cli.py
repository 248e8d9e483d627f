"""`kbo`: the entry, help by task, and each error as one line and a code.

What its commands do is in `commands/`, a module a subject.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from kbo_pipeline.commands import agents, imports, operate, read, search, serve
from kbo_pipeline.core import signals
from kbo_pipeline.core.text import line_of, one_line

_TASKS = {
    "Read": ("show", "find", "match", "changes", "export", "apply-delta", "serve", "mcp"),
    "Import": ("start", "import", "fetch", "status", "sample"),
    "Operate": (
        "pause",
        "resume",
        "cancel",
        "publish",
        "rollback",
        "verify",
        "copy-register",
        "index",
    ),
    "Repair": ("doctor", "retry", "repair", "rebuild"),
}
"""Commands by what people want to do, in the order of the help; others come last."""


_AT_WORK = ("import", "retry", "publish", "rollback", "repair", "rebuild")
"""Commands whose progress `kbo status` shows when they are stopped."""


class Commands(click.Group):
    """The group of all commands; only an unknown error ends it with a traceback."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "kbo",
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command; standing alone, ends the process with its code."""
        if not standalone_mode:
            return super().main(args, "kbo", complete_var, standalone_mode=False, **extra)
        _replace_unprintable()
        try:
            code = super().main(args, "kbo", complete_var, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.ClickException as error:
            code = _fail(_usage_error(error), error.exit_code)
        except click.Abort:
            code = _fail("stopped", 130)
        except Exception as error:  # an unknown one keeps its traceback
            line = line_of(error)
            if line is None:
                raise
            code = _fail(line, 1)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command that the context names; Ctrl-C and its like are a line and a code."""
        signals.listen()
        # Dagster's client would take `http_proxy` for the TCP address of a code location; gRPC
        # prefers an empty `grpc_proxy`, here and in all children.
        os.environ["grpc_proxy"] = ""  # noqa: SIM112 - gRPC knows it in small letters only
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            signals.ignore_further()
            is_at_work = ctx.invoked_subcommand in _AT_WORK
            hint = "; kbo status says how far it came" if is_at_work else ""
            sys.exit(_fail(f"stopped{hint}", 130))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a name; for an unknown one, an error with a similar name.

        Raises:
            click.UsageError: there is no such command.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.UsageError(f"no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the commands by task, each with its first sentence."""
        left = self.list_commands(ctx)
        listed = {name for names in _TASKS.values() for name in names}
        others = tuple(name for name in left if name not in listed)
        for task, names in {**_TASKS, "Other": others}.items():
            there = [name for name in names if name in left]
            rows = [(name, self.commands[name].get_short_help_str(limit=500)) for name in there]
            if rows:
                with formatter.section(task):
                    formatter.write_dl(rows)


def _replace_unprintable() -> None:
    """Prints a question mark, and no error, for what the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _usage_error(error: click.ClickException) -> str:
    """An error in an option or argument: the command, what is wrong, and where its help is."""
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    command = context.command_path.removeprefix("kbo").strip()
    place = f"{command}: " if command else ""
    return f"{place}{message[:1].lower()}{message[1:]}; see {context.command_path} --help"


def _fail(line: str, code: int) -> int:
    """Prints a line to stderr, if it is open; returns the code."""
    with suppress(OSError):
        click.echo(f"kbo: {one_line(line)}", err=True)
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:  # Python would flush once more at its end, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return code


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
    *(read.show, read.find, read.changes, read.export, read.apply_delta, read.verify),
    *(read.copy_register, search.index, search.match_command),
    serve.serve,
    agents.mcp,
    *(imports.import_command, imports.fetch, imports.retry, imports.publish, imports.cancel),
    *(
        imports.rollback,
        imports.repair,
        imports.status,
        operate.start,
        operate.pause,
        operate.resume,
    ),
    *(operate.doctor, operate.rebuild, operate.sample),
):
    main.add_command(_command)

if __name__ == "__main__":
    main()
