"""The page of the command line, from its parser."""

from __future__ import annotations

import argparse
from pathlib import Path

_PAGE = """# Command line

`trvae-sc COMMAND`. Outputs are written completely or not at all. Exit codes are 0 (done), 1 (failed), 2 (bad
input), 130 (interrupted) and 143 (terminated). The [guide](../guide/command_line.md) has examples.
"""


def write_commands(parser: argparse.ArgumentParser, path: Path) -> None:
    """Write the help of every subcommand."""
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    parts = [_PAGE]
    for name, command in next(actions).choices.items():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=76)
        parts.append(f"## trvae-sc {name}\n\n```text\n{command.format_help().strip()}\n```\n")
    text = "\n".join(parts)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
