"""Reads YAML from untrusted files: values as in YAML 1.2, limited work, and errors with a line number.

PyYAML implements YAML 1.1, where ``1e-3`` is text, ``no`` is false and ``010`` is 8, and uses the last of several equal
keys. This reader uses the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2, section 10.3.2), refuses equal keys, and
limits size, depth and the expansion of aliases before any object is built.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MOST_BYTES = 1 << 20
MOST_DEPTH = 40
MOST_VALUES = 20_000
"""Limit on the number of values of one text, with aliases expanded."""
_MOST_DIGITS = 400
"""Limit on the digits of one number."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class YamlError(ValueError):
    """The text is not valid YAML or exceeds a limit; the message names the problem and the line."""


def decode_text(data: bytes) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark; YamlError for any other encoding."""
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise YamlError(
            f"line {line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig').upper()} ({error.reason}); "
            "save the file as UTF-8"
        ) from None


def load_yaml(text: str) -> Any:
    """Returns the value of ``text``: mappings, lists, text, numbers, booleans and None. YamlError for everything else."""
    if len(text) > MOST_BYTES:
        raise YamlError(f"{len(text):,} characters; at most {MOST_BYTES:,} are read")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_values(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f"line {mark.line + 1}: "
        raise YamlError(f"{where}{error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise YamlError(f"line {line}: the character {_code(error.character)} is not allowed") from None
    except yaml.YAMLError as error:
        raise YamlError(str(error)) from None


def _code(character: int | str | bytes) -> str:
    number = character if isinstance(character, int) else ord(character)
    return f"U+{number:04X}"


def _check_values(root: Node) -> None:
    """Raises YamlError if ``root``, with aliases expanded, has more than MOST_VALUES values or contains itself."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node) -> int:
        if id(node) in open_nodes:
            raise yaml.MarkedYAMLError(problem="an alias refers to what it is part of", problem_mark=node.start_mark)
        if id(node) not in sizes:
            open_nodes.add(id(node))
            parts: list[Node] = []
            if isinstance(node, SequenceNode):
                parts = node.value
            elif isinstance(node, MappingNode):
                parts = [part for pair in node.value for part in pair]
            sizes[id(node)] = 1 + sum(map(size, parts))
            open_nodes.discard(id(node))
        if sizes[id(node)] > MOST_VALUES:
            problem = f"more than {MOST_VALUES:,} values, with what aliases stand for"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return sizes[id(node)]

    size(root)


class _Loader(yaml.SafeLoader):
    """A SafeLoader with the values of YAML 1.2, a limit on depth, and without equal keys."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.depth += 1
        if self.depth > MOST_DEPTH:
            problem = f"values nested deeper than {MOST_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if not isinstance(key_node, ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key that is no plain value", problem_mark=key_node.start_mark)
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if key in seen:
                problem = f"the key {key_node.value!r} is given again; it is on line {seen[key]} already"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen[key] = line
        return super().construct_mapping(node, deep)

    def read_int(self, node: ScalarNode) -> int:
        text = self.construct_scalar(node)
        if len(text) > _MOST_DIGITS:
            problem = f"a number of {len(text):,} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)

    def read_float(self, node: ScalarNode) -> float:
        text = self.construct_scalar(node).lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))

    def read_bool(self, node: ScalarNode) -> bool:
        return self.construct_scalar(node).lower() == "true"


_Loader.yaml_implicit_resolvers = {}


def _plain(kind: str, pattern: str, first: str) -> None:
    """Registers that plain values that match ``pattern`` and begin with one of ``first`` are of ``kind``."""
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(rf"^(?:{pattern})$"), list(first))


_plain("null", "~|null|Null|NULL|", "~nN\0")
_plain("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_plain("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789")
_plain("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789")
_plain("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.")
_plain("merge", "<<", "<")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.read_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.read_float)
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.read_bool)
for _tag in ("timestamp", "binary", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_undefined)


def write_yaml(value: Any) -> str:
    """Returns YAML that :func:`load_yaml` and readers of YAML 1.1 read back as ``value``; text of several lines is a block."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Quotes text that readers of YAML 1.1 or 1.2 would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes equal parts again instead of aliases."""
        return True

    def write_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}
_Dumper.add_representer(str, _Dumper.write_text)
