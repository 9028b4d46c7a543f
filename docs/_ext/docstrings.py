"""How docstrings are read: returned values as prose, own members only, private paths as public names."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.ext.napoleon import NumpyDocstring

_PACKAGE = "trvae_sc"


def _returns(self: NumpyDocstring, section: str) -> list[str]:
    """Return a "Returns" section, which is prose here: its types are those of the signature."""
    del section
    lines = self._format_block(":returns: ", self._dedent(self._consume_to_next_section()))
    return [*lines, ""] if lines and lines[-1] else lines


def _attribute(self: NumpyDocstring) -> list[str]:
    """Return the text of an attribute as it is: a colon in it does not end a type."""
    return self._dedent(self._consume_to_end())


def _skip(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:  # noqa: FBT001
    """Return True for members that a class has from other packages: they have pages there."""
    del app, what, options
    if skip or name.startswith("_"):
        return None
    if type(member).__name__ == "_tuplegetter":  # field of a named tuple
        return None
    function = getattr(member, "fget", None) or getattr(member, "func", None)
    function = inspect.unwrap(function or getattr(member, "__func__", member))
    if not str(getattr(function, "__module__", "")).startswith(_PACKAGE):
        return True
    return None


def _describe(
    app: Sphinx, what: str, name: str, member: Any, options: Any, lines: list[str]
) -> None:
    """Remove what Python says of the fields of named tuples."""
    del app, what, name, member, options
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()


def _resolve(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Return a link to the public name of what annotations name by the private module that has it."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.domains["py"], node["reftarget"]
    for name in _candidates(target, domain.objects):
        entry = domain.objects[name]
        return domain.resolve_xref(
            env, node["refdoc"], app.builder, entry.objtype, name, node, contnode
        )
    return None


def _candidates(target: str, objects: dict[str, Any]) -> Iterator[str]:
    """Yield documented names that a name may stand for: of one or two last parts, public first."""
    parts = target.split(".")
    if len(parts) > 2 and parts[0] != _PACKAGE:
        return
    for n in (2, 1):
        end = "." + ".".join(parts[-n:])
        if len(parts) >= n:
            found = [name for name in objects if name.endswith(end) and name.startswith(_PACKAGE)]
            yield from sorted(found, key=lambda name: (name.count("."), name))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    NumpyDocstring._parse_returns_section = _returns  # type: ignore[method-assign]
    NumpyDocstring._parse_attribute_docstring = _attribute  # type: ignore[method-assign]
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _describe)
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
