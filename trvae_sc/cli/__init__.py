"""Command line: parse, read, call one public function, write."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from trvae_sc.cli._parser import make_parser
from trvae_sc.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code.

    0 done, 1 failed, 2 bad input, 130 interrupted by Ctrl-C, 143 terminated.
    """
    parser = make_parser()
    _complete(parser)
    given = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(given, argparse.Namespace(stdout=sys.stdout, argv=list(given)))
    stops: list[int] = []
    try:
        # progress bars go to stderr: stdout is for results
        with _terminable(stops), _logging(args), contextlib.redirect_stdout(sys.stderr):
            args.run(args)
        return 0
    except InputError as error:
        _complain(in_words_of_options(str(error), args))
        return 2
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "interrupted")
        return 143 if stops else 130
    except MemoryError as error:
        _complain(f"out of memory. {error}")
        return 1
    except (OSError, FloatingPointError) as error:
        _complain(error)
        return 1
    except Exception as error:  # noqa: BLE001  (the last resort: nothing raw is shown)
        _complain(
            f"{type(error).__name__}: {error}. This is a bug of trvae_sc, not of your input. Please "
            f"report it with {_traceback_file()}."
        )
        return 1


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks for completions and end; do nothing otherwise.

    Needs ``pip install 'trvae_sc[completion]'`` and, in the shell,
    ``eval "$(register-python-argcomplete trvae-sc)"``.
    """
    if "_ARGCOMPLETE" in os.environ:
        with contextlib.suppress(ImportError):
            import argcomplete

            argcomplete.autocomplete(parser)


@contextlib.contextmanager
def _terminable(stops: list[int]) -> Iterator[None]:
    """Let SIGTERM end the work as Ctrl-C does, so that nothing half-written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        stops.append(number)
        raise KeyboardInterrupt("terminated")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _InOptions(logging.Formatter):
    """Writes what is logged with arguments of Python as options."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return in_words_of_options(super().format(record), self.args)


@contextlib.contextmanager
def _logging(args: argparse.Namespace) -> Iterator[None]:
    """Write what is logged meanwhile to stderr, without what other packages say of themselves."""
    for name in ("lightning", "scvi", "matplotlib", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    level = root.level
    handler.setFormatter(_InOptions(args))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


def in_words_of_options(message: str, args: argparse.Namespace) -> str:
    """Return a message with arguments of Python written as options.

    These are ``name='value'`` and, where no English word reads so, ``a_name``; names in quotes are of
    the data. To ``give name=None`` is to leave the option out.
    """

    def option(found: re.Match[str]) -> str:
        lead, name, value = (found.group(part) or "" for part in ("lead", "name", "value"))
        if name == "overwrite":
            return f"{lead}--force"
        if name not in vars(args) or not (value or "_" in name):
            return found.group(0)
        written = f"--{name.replace('_', '-')}"
        if lead and value == "=None":
            return f"{'Leave' if lead[0].isupper() else 'leave'} out {written}"
        value = value.removeprefix("=")
        if value.startswith(("'", '"')):
            value = shlex.quote(value[1:-1])
        return f"{lead}{written}{' ' if value else ''}{value}"

    value = r"=('[^']*'|\"[^\"]*\"|\[[^\]]*\]|\w+(\.\w+)*)?"
    name = r"(?<![\w'\"\-./])(?P<name>[a-z][a-z_]*)"
    lead = r"(?P<lead>\b(?:[Gg]ive|[Pp]ass) )?"
    return re.sub(rf"{lead}{name}(?P<value>{value})?(?![\w'\"]|\.\w)", option, message)


def _traceback_file() -> str:
    """Return a file with the traceback of the error that is handled."""
    with tempfile.NamedTemporaryFile(
        "w", prefix="trvae-sc-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exc(file=file)
    return file.name


def _complain(message: Any) -> None:
    """Print what went wrong, in one line."""
    print("trvae-sc:", " ".join(str(message).split()), file=sys.stderr)
