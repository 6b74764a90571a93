"""The command line: one command per stage, and what surrounds them. `main` is the entry point.

Commands are registered by name, so that `edgekit --help` imports no stage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, Parameter

from edgekit._version import __version__
from edgekit.cli.launch import process_count, process_number
from edgekit.errors import EdgekitError
from edgekit.stages import STAGES

INTERRUPTED = 130

_OTHER_COMMANDS = {
    "build": (
        "edgekit.cli.build:build",
        "Run a recipe: all stages, all exports, all checks, the bundles and the report.",
    ),
    "bench": ("edgekit.cli.bench:bench", "Measure latency and memory; with --compare, two models in turn."),
    "predict": ("edgekit.cli.predict:predict", "Classify text with a bundle, its digests verified."),
    "chat": ("edgekit.cli.chat:chat", "Talk with a language model in the terminal."),
    "verify": ("edgekit.cli.inspection:verify", "Check every file of an artifact or bundle against its digest."),
    "init": ("edgekit.cli.init:init", "Write a recipe to start from."),
    "recipes": ("edgekit.cli.inspection:recipes", "List the built-in recipes."),
    "targets": ("edgekit.cli.inspection:targets", "List the targets, or show one."),
    "doctor": ("edgekit.cli.inspection:doctor", "Say what this machine and environment can do, and what is missing."),
}

_EXIT_CODES = (
    "Exit codes: 0 met, 1 budget missed, 2 usage or recipe error, 3 parity failed, 4 environment lacks something, "
    "5 training failed, 130 interrupted."
)


def make_app() -> App:
    """Returns the application with every command registered by name."""
    app = App(
        name="edgekit",
        help="Distil, prune, quantize, export, measure and package models for phones, laptops and browsers.",
        help_epilogue=_EXIT_CODES,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative_iterable=()),
    )
    for name, (path, summary) in _OTHER_COMMANDS.items():
        app.command(path, name=name, help=summary, sort_key=0)
    for entry in STAGES.values():
        if entry.kind not in _OTHER_COMMANDS:
            app.command(f"edgekit.cli.stage_commands:{entry.kind}", name=entry.kind, help=entry.summary, sort_key=1)
    app.register_install_completion_command(name="--install-completion")
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the documented code."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; errors become one message on standard error.

    With `--json` an error is a line on standard output as well. Every process of a launched run tells its own error,
    for the others may not know of it.
    """
    app = make_app()
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        from edgekit.cli.options import explain_usage

        message, code = explain_usage(error, " ".join(["edgekit", *arguments[:1]])), 2
    except EdgekitError as error:
        message, code = str(error), error.exit_code
    except KeyboardInterrupt:
        message, code = "interrupted. Run the same command again to go on where it stopped.", INTERRUPTED
    else:
        return code if isinstance(code, int) else 0
    _complain(message, code, as_json="--json" in arguments)
    return code


def _complain(message: str, code: int, *, as_json: bool) -> None:
    if as_json:
        from edgekit.cli.terminal import write_json_line

        write_json_line({"kind": "error", "text": message.strip(), "exit_code": code})
    count = process_count()
    who = "edgekit" if count == 1 else f"edgekit, process {process_number()} of {count}"
    # in one write, so that the lines of several processes stay apart
    sys.stderr.write("".join(f"{who}: {line}\n" for line in message.strip().splitlines()))
