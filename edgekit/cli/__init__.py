"""The command line: one command per stage, and what surrounds them. `main` is the entry point.

Commands are registered by name, so that `edgekit --help` imports no stage. The library that reads the arguments is
imported by `run`, so that an interrupt meanwhile ends like any other.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgekit._version import __version__
from edgekit.cli.launch import process_count, process_number
from edgekit.disk import disk_problem
from edgekit.errors import EdgekitError, UsageError
from edgekit.stages import STAGES

if TYPE_CHECKING:
    from cyclopts import App

INTERRUPTED = 130

_OTHER_COMMANDS = {
    "build": (
        "edgekit.cli.build:build",
        "Run a recipe: all stages, all exports, all checks, the bundles and the report.",
    ),
    "bench": ("edgekit.cli.bench:bench", "Measure latency and memory; with --compare, two models in turn."),
    "matrix": (
        "edgekit.cli.matrix:matrix",
        "Write classifiers in every format and measure all of them in turn in every runtime: one table, one report.",
    ),
    "compare": (
        "edgekit.cli.compare:compare",
        "Say what changed from one saved measurement or build to another, with a verdict on each figure.",
    ),
    "predict": ("edgekit.cli.predict:predict", "Classify text with a bundle, its digests verified."),
    "chat": ("edgekit.cli.chat:chat", "Talk with a language model in the terminal."),
    "verify": (
        "edgekit.cli.inspection:verify",
        "Check artifacts and bundles: every digest, and that a bundle does what it promises.",
    ),
    "init": ("edgekit.cli.init:init", "Write a recipe to start from."),
    "recipes": ("edgekit.cli.inspection:recipes", "List the built-in recipes."),
    "targets": ("edgekit.cli.inspection:targets", "List the targets, or show one."),
    "prepare-device": (
        "edgekit.cli.devices:prepare_device",
        "Download once what an emulated device needs, for `edgekit check --device`.",
    ),
    "doctor": ("edgekit.cli.inspection:doctor", "Say what this machine and environment can do, and what is missing."),
}

_EXIT_CODES = (
    "Exit codes: 0 met, 1 budget missed or worse than before, 2 usage or recipe error, 3 parity failed, "
    "4 environment lacks something, 5 training failed, 130 interrupted."
)


def make_app() -> App:
    """Returns the application with every command registered by name."""
    from cyclopts import App, Parameter

    app = App(
        name="edgekit",
        help="Distil, prune, quantize, export, measure and package models for phones, laptops and browsers.",
        help_epilogue=_EXIT_CODES,
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative_iterable=()),
        suppress_keyboard_interrupt=False,  # else it exits without a word
    )
    for name, (path, summary) in _OTHER_COMMANDS.items():
        app.command(path, name=name, help=summary, sort_key=0)
    for entry in STAGES.values():
        if entry.kind not in _OTHER_COMMANDS:
            app.command(f"edgekit.cli.stage_commands:{entry.kind}", name=entry.kind, help=entry.summary, sort_key=1)
    app.register_install_completion_command(name="--install-completion")
    return app


_CHATTY = ("torchao", "torch.utils._pytree")
"""Loggers of libraries that tell at their import of what edgekit does not use, such as kernels for GPUs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the documented code."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; errors become one message on standard error.

    With `--json` an error is a line on standard output as well. Every process of a launched run tells its own error,
    for the others may not know of it.
    """
    try:
        return _dispatch(arguments)
    except (Exception, KeyboardInterrupt) as error:
        explained = _explain(error)
        if explained is None:
            raise
    message, code = explained
    _complain(message, code, as_json="--json" in arguments)
    return code


def _explain(error: Exception | KeyboardInterrupt) -> tuple[str, int] | None:
    """Returns what to tell a person of an error, and the exit code; None for a mistake in the program."""
    if _was_interrupted(error):
        return "interrupted. Run the same command again to go on where it stopped.", INTERRUPTED
    if isinstance(error, EdgekitError):
        return str(error), error.exit_code
    problem = disk_problem(error) if isinstance(error, Exception) else None
    if problem is None:
        return None
    return f"a file could not be written ({problem}). Free disk space, then run the same command again.", 4


def _was_interrupted(error: BaseException) -> bool:
    """Returns whether an interrupt lies behind an error: a library that it meets while it is imported wraps it."""
    following: BaseException | None = error
    while following is not None and not isinstance(following, KeyboardInterrupt):
        following = following.__cause__ or following.__context__
    return following is not None


def _dispatch(arguments: list[str]) -> int:
    """Runs the command that `arguments` name and returns its exit code.

    Raises:
        UsageError: they name none, or not as it is called.
        EdgekitError: whatever the command raises.
    """
    from cyclopts import CycloptsError

    try:
        code = make_app()(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        from edgekit.cli.options import explain_usage

        raise UsageError(explain_usage(error, " ".join(["edgekit", *arguments[:1]]))) from error
    return code if isinstance(code, int) else 0


def _complain(message: str, code: int, *, as_json: bool) -> None:
    if as_json:
        from edgekit.cli.terminal import write_json_line

        write_json_line({"kind": "error", "text": message.strip(), "exit_code": code})
    count = process_count()
    who = "edgekit" if count == 1 else f"edgekit, process {process_number()} of {count}"
    # in one write, so that the lines of several processes stay apart
    sys.stderr.write("".join(f"{who}: {line}\n" for line in message.strip().splitlines()))
