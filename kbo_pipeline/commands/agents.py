"""`kbo mcp`: the published register for agents."""

import click

from kbo_pipeline.commands.console import leave_out_pandas


@click.command()
def mcp() -> None:
    """Answer an agent over standard input and output, by the Model Context Protocol.

    Its tools read the published register and change nothing: docs/agents.md says how to set it up.
    """
    leave_out_pandas()
    from kbo_pipeline.core.settings import load_settings
    from kbo_pipeline.read.agents import serve

    serve(load_settings())
