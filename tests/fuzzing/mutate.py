"""Changes files as accidents and enemies do: in their structure where they have one, else in their bytes.

All functions take a ``random.Random`` and depend on nothing else, so an input can be made again from its seed.
"""

from __future__ import annotations

import copy
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

Mutator = Callable[[Random, bytes], bytes]

TEXTS = (
    *(
        "",
        " ",
        "a",
        "none",
        "null",
        "NaN",
        "inf",
        "-inf",
        "nan",
        "1e400",
        "-1",
        "0",
        "1",
        "2",
        "9" * 30,
        "1e-3",
        "0x10",
        "yes",
    ),
    *(
        "\x1b[31mred\x1b[0m",
        "[/b]",
        "[red]",
        "<script>",
        "=cmd()",
        "@x",
        "../../x",
        "/etc/passwd",
        "\0",
        "\r\n",
        "a\nb",
        "\u202e",
    ),
    *(
        "\udce9",
        "\ud800",
        "犬",
        "🐕",
        "é",
        "x" * 5000,
        "train",
        "val",
        "test",
        "*",
        "**",
        "(a+)+$",
        "{}",
        "[]",
        "%s",
        "$HOME",
        "~",
    ),
    *(
        "all",
        "head",
        "last:1",
        "last:0",
        "last:99",
        "layer4.*",
        "!x",
        "3ep",
        "5st",
        "0ep",
        "-1ep",
        "1e9ep",
        "0.5",
        "1.0",
        "auto",
    ),
    *(
        "raw",
        "ema",
        "swa",
        "resumed",
        "rolled_back",
        "evaluated",
        "finished",
        "cifar_resnet18",
        "timm:resnet18",
        "2020-01-01",
    ),
)
NUMBERS = (
    *(
        0,
        1,
        -1,
        2,
        3,
        7,
        255,
        256,
        1000,
        65_536,
        10**6,
        2**31 - 1,
        2**31,
        2**32,
        2**53 + 1,
        2**63 - 1,
        2**63,
        10**20,
        10**300,
    ),
    *(
        -(2**63),
        0.5,
        -0.5,
        1e-3,
        1e-320,
        1e308,
        -1e308,
        float("nan"),
        float("inf"),
        -float("inf"),
        1.5,
        0.1,
        100.0,
        101.0,
    ),
)
ODD: tuple[Any, ...] = (
    *TEXTS,
    *NUMBERS,
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": None},
    [1, "a"],
    [0, 1, 2],
    {"a": {"b": []}},
)


def odd_value(random: Random) -> Any:
    """A value that few places expect; at times deeply nested, or long."""
    if random.random() < 0.03:
        value: Any = 1
        for _ in range(random.choice((50, 2_000))):
            value = [value] if random.random() < 0.5 else {"a": value}
        return value
    if random.random() < 0.03:
        return [random.choice(NUMBERS)] * random.choice((10, 3_000))
    return random.choice(ODD)


def nearby_value(random: Random, value: Any) -> Any:
    """A value of the same type or a neighbouring one."""
    if isinstance(value, bool):
        return random.choice((not value, int(value), str(value)))
    if isinstance(value, int | float):
        return random.choice((value + 1, value - 1, -value, value * 10, value * 1e9, float(value), str(value), [value]))
    if isinstance(value, str):
        at = random.randrange(len(value) + 1)
        return random.choice(
            (value[:at], value[:at] + random.choice(TEXTS) + value[at:], value.upper(), value * 3, [value])
        )
    if isinstance(value, list):
        return random.choice((value[:1], value * 2, value[::-1], [*value, odd_value(random)], {"0": value}, value[1:]))
    if isinstance(value, dict):
        return random.choice((list(value), list(value.values()), {**value, random.choice(TEXTS): odd_value(random)}))
    return odd_value(random)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) within ``value``."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in pairs:
        yield value, key
        yield from _places(one)


def tree(random: Random, value: Any) -> Any:
    """``value``, of dicts and lists, with one to four changes of values, keys and order."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        places = list(_places(value))
        if not places or random.random() < 0.01:
            return odd_value(random)
        within, key = random.choice(places)
        kind = random.random()
        if kind < 0.45:
            within[key] = odd_value(random)
        elif kind < 0.7:
            within[key] = nearby_value(random, within[key])
        elif kind < 0.82:
            del within[key]
        elif kind < 0.92:
            other, place = random.choice(places)
            if place in other if isinstance(other, dict) else place < len(other):
                within[key] = copy.deepcopy(other[place])
        elif isinstance(within, dict):
            within[random.choice((*TEXTS, *within))] = odd_value(random)
        else:
            within.insert(random.randrange(len(within) + 1), odd_value(random))
    return value


def text_of(value: Any) -> bytes:
    """``value`` as JSON, as a careless program would write it."""
    try:
        return json.dumps(value, default=str).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):  # nested too deeply for Python, or a number of too many digits
        return b"[" * 100_000


def _text(value: Any) -> str:
    try:
        return str(value)
    except RecursionError:  # nested too deeply for Python
        return "[" * 2_000


def as_json(random: Random, data: bytes) -> bytes:
    """JSON with a changed tree, and at times changed bytes."""
    if random.random() < 0.25:
        return as_bytes(random, data)
    try:
        changed = text_of(tree(random, json.loads(data)))
    except (ValueError, RecursionError):
        return as_bytes(random, data)
    return as_bytes(random, changed) if random.random() < 0.1 else changed


def as_json_lines(random: Random, data: bytes) -> bytes:
    """Lines of JSON, of which one to three are changed, repeated, moved or removed."""
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(lines))
        kind = random.random()
        if kind < 0.75:
            lines[at] = as_json(random, lines[at])
        elif kind < 0.85:
            lines.insert(random.randrange(len(lines) + 1), lines[at])
        elif len(lines) > 1:
            del lines[at]
    return b"\n".join(lines)


def as_yaml(random: Random, data: bytes) -> bytes:
    """YAML with a changed tree, or changed bytes; anchors, tags and doubled keys among them."""
    kind = random.random()
    if kind < 0.65:
        try:
            changed = yaml.safe_dump(tree(random, yaml.safe_load(data)), allow_unicode=True, default_flow_style=None)
            return changed.encode("utf-8", "surrogatepass")
        except (yaml.YAMLError, RecursionError, ValueError):
            return as_bytes(random, data)
    if kind < 0.85:
        lines = data.split(b"\n")
        extra = (
            "&a [*a]",
            "x: &a {k: *a}",
            "<<: {a: 1}",
            "!!python/name:os",
            "? [a]\n: b",
            "- 1",
            "epochs: 1ep\nepochs: 2ep",
        )
        at = random.randrange(len(lines) + 1)
        new = random.choice(
            (*extra, "\t", "---", "...", "%YAML 9", "{", "[", '"', "|", "lr: 1e-3", "seed: 010", "seed: 1_0")
        )
        return b"\n".join([*lines[:at], new.encode(), *lines[at:]])
    return as_bytes(random, data)


def as_csv(random: Random, data: bytes) -> bytes:
    """CSV with changed cells, rows, columns, separators or line ends, or changed bytes."""
    kind = random.random()
    if kind < 0.3:
        return as_bytes(random, data)
    rows = list(csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline="")))
    for _ in range(random.choice((1, 1, 2, 4))):
        if not rows:
            break
        row = random.choice(rows) if random.random() < 0.8 else rows[0]
        kind = random.random()
        if kind < 0.6 and row:
            at = random.randrange(len(row))
            row[at] = random.choice((_text(odd_value(random)), _text(nearby_value(random, row[at]))))[:20_000]
        elif kind < 0.7:
            row.insert(random.randrange(len(row) + 1), random.choice(TEXTS))
        elif kind < 0.78 and row:
            del row[random.randrange(len(row))]
        elif kind < 0.86:
            rows.insert(random.randrange(len(rows) + 1), list(row))
        elif kind < 0.93:
            rows.remove(row)
        else:
            random.shuffle(rows)
    out = io.StringIO(newline="")
    csv.writer(
        out,
        delimiter=random.choice((",",) * 8 + (";", "\t", "|")),
        lineterminator=random.choice(("\n",) * 6 + ("\r\n", "\r")),
        quoting=random.choice((csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    ).writerows(rows)
    return out.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(random: Random, data: bytes) -> bytes:
    """A Parquet file with changed values, types, columns, rows or metadata, or changed bytes."""
    if random.random() < 0.25:
        return as_bytes(random, data)
    table = pq.read_table(pa.BufferReader(data))
    for _ in range(random.choice((1, 1, 2, 3))):
        table = _changed_table(random, table)
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def _changed_table(random: Random, table: pa.Table) -> pa.Table:
    kind, names = random.random(), table.column_names
    if kind < 0.12 or not names:
        return table.slice(0, random.choice((0, 1, max(0, len(table) - 1))))
    name = random.choice(names)
    at = names.index(name)
    if kind < 0.2:
        return table.remove_column(at)
    if kind < 0.26:
        return table.append_column(random.choice((name, "label", "path", "x")), table.column(at))
    if kind < 0.32:
        return table.rename_columns([random.choice(TEXTS[:10]) if one == name else one for one in names])
    if kind < 0.5 and table.schema.metadata:
        return table.replace_schema_metadata(_changed_metadata(random, dict(table.schema.metadata)))
    return table.set_column(at, name, _changed_column(random, table.column(at)))


def _changed_metadata(random: Random, metadata: dict[bytes, bytes]) -> dict[bytes, bytes]:
    key = random.choice(sorted(metadata))
    metadata[key] = as_json(random, metadata[key])
    return metadata if random.random() < 0.9 else {}


def _changed_column(random: Random, column: pa.ChunkedArray) -> pa.Array:
    values = column.to_pylist()
    kind = random.random()
    if kind < 0.45 and values:
        for _ in range(random.choice((1, 1, 5))):
            at = random.randrange(len(values))
            values[at] = random.choice((None, odd_value(random), nearby_value(random, values[at])))
        try:
            return pa.array(values, column.type)
        except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeError):
            pass
    form = random.choice(
        (pa.int8(), pa.int64(), pa.float64(), pa.string(), pa.large_string(), pa.binary(), pa.bool_(), pa.date32())
    )
    try:
        return pa.array(values, column.type).cast(form)
    except (pa.ArrowException, OverflowError, TypeError, ValueError, UnicodeError):
        odd = random.choice(([None] * len(values), [[1]] * len(values), [{"a": 1}] * len(values), [-7] * len(values)))
        return pa.array(odd)


def as_bytes(random: Random, data: bytes) -> bytes:
    """``data`` with bits flipped, parts cut, repeated, exchanged or written over, or in another encoding."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        size = len(changed)
        at, end = sorted((random.randrange(size + 1), min(size, random.randrange(size + 1))))
        kind = random.random()
        if kind < 0.35 and size:
            changed[min(at, size - 1)] ^= 1 << random.randrange(8)
        elif kind < 0.45:
            del changed[at:]
        elif kind < 0.6:
            del changed[at : min(end, at + random.choice((1, 4, 100)))]
        elif kind < 0.75:
            changed[at:at] = _bytes(random)
        elif kind < 0.85:
            changed[at:at] = changed[at : min(end, at + 2_000)] * random.choice((1, 1, 30))
        elif kind < 0.9:
            changed[at:] = bytes(len(changed) - at)
        elif kind < 0.93:
            changed = bytearray(bytes(changed).replace(b"\n", b"\r\n"))
        elif kind < 0.96:
            changed = bytearray(
                bytes(changed)
                .decode("utf-8", "replace")
                .encode(random.choice(("utf-16", "utf-32", "latin-1")), "replace")
            )
        else:
            changed[0:0] = random.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"#", b"\n\n", b"PK\3\4"))
    return bytes(changed)


def _bytes(random: Random) -> bytes:
    odd = (
        b"\xff",
        b"\x80\x80",
        b"\0\0\0\0",
        b"\n",
        b",",
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b"\x1b[2J",
        b"9" * 400,
        b"[" * 3_000,
    )
    return random.choice((*odd, random.choice(TEXTS).encode("utf-8", "surrogatepass")))


def as_settings(random: Random, examples: Sequence[str]) -> str:
    """A text for ``--set``, made of ``examples``."""
    path, _, value = random.choice(examples).partition("=")
    kind = random.random()
    if kind < 0.35:
        value = (
            _text(odd_value(random))
            if random.random() < 0.5
            else text_of(odd_value(random)).decode("utf-8", "surrogatepass")
        )
    elif kind < 0.55:
        value = _text(nearby_value(random, value))
    elif kind < 0.75:
        steps = path.split(".")
        steps[random.randrange(len(steps))] = random.choice(
            (*TEXTS, "stages", "0", "-1", "99999999999", "name", "__class__")
        )
        path = ".".join(steps)
    elif kind < 0.85:
        path, value = random.choice(examples).partition("=")[0], random.choice(examples).partition("=")[2]
    else:
        return as_bytes(random, f"{path}={value}".encode()).decode("utf-8", "replace")[:100_000]
    return f"{path}={value}"[:100_000]
