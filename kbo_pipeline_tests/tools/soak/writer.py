"""The writer of the lake: applies the batches of a staged extract, `applied` printed for each.

`python -m kbo_pipeline_tests.tools.soak.writer EXTRACT`, with the settings in the environment. It
ends with `AGAIN` and the error where another attempt may succeed.
"""

import sys

import duckdb

from kbo_pipeline.apply.register import open_register_to_write
from kbo_pipeline.core.database import connect, is_transient
from kbo_pipeline.core.errors import KboError
from kbo_pipeline.core.extracts import ExtractKey
from kbo_pipeline.core.settings import load_settings

AGAIN = 75


def main() -> None:
    """Applies what is not applied yet."""
    settings = load_settings()
    try:
        with (
            connect(settings) as connection,
            open_register_to_write(connection, settings.register) as register,
            register.importing(settings.staging_dir, ExtractKey.parse(sys.argv[1])) as staged,
        ):
            for batch in staged.batches:
                if not register.apply(staged, batch).already_applied:
                    print("applied", flush=True)
    except (KboError, duckdb.Error) as error:
        print(f"{type(error).__name__}: {error}".split("\n", 1)[0])
        sys.exit(AGAIN if is_transient(error) else 1)


if __name__ == "__main__":
    main()
