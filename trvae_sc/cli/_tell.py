"""What a command says: lines for people on stderr; on stdout only what ``--json`` asks for."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any


def say(line: object) -> None:
    """Print a line, or a table, for people."""
    print(line, file=sys.stderr)


def answer(args: argparse.Namespace, record: Mapping[str, Any] | list[str]) -> None:
    """Print a record as JSON where ``--json`` was given."""
    if args.json:
        print(json.dumps(record), file=args.stdout)
