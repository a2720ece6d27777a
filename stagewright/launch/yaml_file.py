"""YAML as people write it: in the given order, texts of several lines as blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, lists indented, and nothing as an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def yaml_text(content: Mapping[str, Any], heading: str) -> str:
    """Returns ``content`` as YAML under ``heading``, comment lines."""
    return heading + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
