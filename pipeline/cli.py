"""The `uvd` command. Each group of commands has a file of its own; heavy packages are imported when they are needed.

Exit codes: 0 all done, 1 error, 2 usage or config, 3 some shards failed or the run was stopped.
"""

from __future__ import annotations

import errno
import os
import sys

import typer
from rich.console import Console

from uvd import __version__
from uvd.pipeline import (
    cli_browse,
    cli_build,
    cli_data,
    cli_dedup,
    cli_eval,
    cli_export,
    cli_inspect,
    cli_jobs,
    cli_model,
    cli_play,
    cli_tokenizer,
    cli_train,
    cli_verify,
)
from uvd.sequences.errors import UserError
from uvd.sequences.object_stores import ObjectStoreError, explain, is_store_failure

_DISK_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}

app = typer.Typer(
    name="uvd",
    help="Raw visual data in, unified vision dataset of token sequences and a large vision model out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
cli_data.register(app)
cli_build.register(app)
cli_inspect.register(app)
cli_verify.register(app)
cli_dedup.register(app)
cli_tokenizer.register(app)
cli_train.register(app)
cli_model.register(app)
cli_play.register(app)
cli_browse.register(app)
cli_eval.register(app)
cli_export.register(app)
cli_jobs.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"uvd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Runs the command line; known errors become one message and an exit code, unknown ones keep their traceback."""
    try:
        app()
    except BrokenPipeError:
        # The reader of our output went away (`uvd stats | head`); that is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        _print_error(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if is_store_failure(error):
            _print_error(explain(error))
            sys.exit(ObjectStoreError.exit_code)
        if error.errno not in _DISK_FAILURES:
            raise
        _print_error(f"{error}. When that is mended, the same command goes on.")
        sys.exit(1)


def _print_error(message: str) -> None:
    Console(stderr=True).print(f"uvd: {message}", style="red", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
