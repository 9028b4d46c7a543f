"""Command line: parse, read, call one public function, write."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

from trvae_sc.cli._parser import make_parser

_BAD_INPUT = (
    ValueError,
    KeyError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    args = make_parser().parse_args(argv, argparse.Namespace(stdout=sys.stdout))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("lightning", "scvi", "matplotlib", "fontTools"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # progress bars: stdout is for results
            args.run(args)
        return 0
    except _BAD_INPUT as error:
        _complain(error.args[0] if isinstance(error, KeyError) else error)
        return 2
    except (OSError, RuntimeError, FloatingPointError) as error:
        _complain(error)
        return 1
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "interrupted")
        return 130


def _complain(message: Any) -> None:
    """Print what went wrong, in one line."""
    print("trvae-sc:", " ".join(str(message).split()), file=sys.stderr)
