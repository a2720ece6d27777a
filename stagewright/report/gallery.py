"""The pictures of the report: what each stage was fed, the most confident errors, errors by pair, the hardest of each class.

They are stored in the page, each once, up to a number of bytes. What there is no room for, or what is gone, is counted, and named
by its path where a list would show it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagewright.data.images.encode import encoded
from stagewright.report import results
from stagewright.report.elements import Pictures, text
from stagewright.report.examples import Places, errors_by_pair, hardest, most_confident_errors
from stagewright.report.read import RunRecord
from stagewright.report.results import SPLIT_NAMES
from stagewright.report.tables import Predictions
from stagewright.report.thumbnails import Thumbnails, thumbnails
from stagewright.text import count_text

MOST_BYTES = 2_000_000
"""Size of all pictures of a page together, unless another is given."""
CONFIDENT = 24
"""Number of most confident errors."""
_EACH, _PER_PAIR = 4, 12
_MOST_CLASSES = 60
_SHOWN_PAIRS, _OPEN_CLASSES = 30, 12
_NAMED = 3
"""Of the images of a pair for which there is no room, so many are named."""
_MIXED = {
    "none": "nothing is mixed",
    "mixup": "mixup, {share} of each its own",
    "cutmix": "cutmix, {share} of each its own",
}
_OWN, _HEAT, _FED = "own ", "heat ", "fed "
"""How keys of pictures begin: thumbnails and saliency maps, by path, and pictures that a stage was fed."""
Heat = Mapping[str, NDArray[np.uint8]]
"""By path: an image with its saliency map over it, uint8 (S, S, 3)."""


class Gallery:
    """The parts of the page with pictures, made in the order of their importance: a later part gets the room that is left."""

    def __init__(self, record: RunRecord, most_bytes: float = MOST_BYTES, heat: Heat | None = None) -> None:
        self.record, self.heat, self.classes = record, heat or {}, record.classes
        self.pictures = Pictures(most_bytes)
        self.fed = self._fed()
        """HTML: what each stage's network was fed."""
        self.confident = self.pairs = self.hard = self.note = ""
        """HTML: the most confident errors; the errors by pair; the hardest of each class; what is not shown."""
        self.predictions = results.shown_split(record)
        if self.predictions is None or self.predictions.paths is None or not len(self.predictions):
            return
        self.paths = [str(path) for path in self.predictions.paths]
        source = thumbnails(record)
        by_pair = errors_by_pair(self.predictions)
        if isinstance(source, str):
            self.note = f'<p class="bad">{text(source)}</p>'
        else:
            self._store(source, self.predictions, [pair.places[:_PER_PAIR] for pair in by_pair])
            self.confident = self._confident(self.predictions)
            self.hard = self._hardest(self.predictions)
        self.pairs = "".join(self._pair(self.predictions, p.true, p.predicted, p.places) for p in by_pair)
        if self.pairs:
            self.pairs = self._index([(p.true, p.predicted, len(p.places)) for p in by_pair]) + self.pairs

    @property
    def style(self) -> str:
        """CSS with the pictures."""
        return self.pictures.style

    def _store(self, source: Thumbnails, predictions: Predictions, pairs: Sequence[Places]) -> None:
        """Puts the pictures into the page while there is room."""
        confident = most_confident_errors(predictions, CONFIDENT)
        for path, pixels in self.heat.items():
            self.pictures.add(_HEAT + path, encoded(pixels, source.side))
        hard = [hardest(predictions, label, _EACH) for label in self._classes(predictions)]
        wanted = [self.paths[at] for at in np.concatenate([confident, *hard, *pairs]).tolist()]
        unique = list(dict.fromkeys(wanted))
        tried = 0
        for path, pixels in source.read(unique):
            tried += 1
            if pixels is not None and not self.pictures.add(_OWN + path, encoded(pixels)):
                break
        left, parts = len(unique) - tried + len(self.pictures.left_out), []
        if left:
            parts.append(
                f"{count_text(left, 'picture')} left out: this page holds at most {self.pictures.most_bytes / 1e6:g} MB of "
                "them (stagewright report RUN --image-mb 10 shows more)."
            )
        if source.gone:
            parts.append(f"{count_text(source.gone, 'picture')} cannot be shown; of the last one, {source.reason}.")
        self.note = "".join(f"<p>{text(part)}</p>" for part in parts)

    def _fed(self) -> str:
        rows = []
        for index, content in self.record.fed.items():
            stage = next((s for s in self.record.stages if s.get("index") == index), {})
            for at, one in enumerate(content["images"]):
                self.pictures.add(f"{_FED}{index} {at}", _decoded(one["file"]))
            share = f"{100 * content['share']:.0f} %"
            facts = [f"step {content['step']:,}", _MIXED[content["kind"]].format(share=share)]
            if "image_size" in stage:
                facts.insert(0, f"{stage['image_size']:,} px")
            tiles = [
                self._tile(f"{_FED}{index} {at}", one["path"], self._mixed(one, content["share"]))
                for at, one in enumerate(content["images"])
            ]
            name = text(stage.get("name", index + 1))
            rows.append(
                f'<h3>{name} <small>{text(" · ".join(facts))}</small></h3><div class="strip">{"".join(tiles)}</div>'
            )
        return "".join(rows)

    def _mixed(self, one: Mapping[str, Any], share: float) -> str:
        own, other = self._name(one["label"]), self._name(one["other"])
        return own if own == other else f"{own} {100 * share:.0f} % + {other} {100 * (1 - share):.0f} %"

    def _name(self, label: int) -> str:
        return self.classes[label] if label < len(self.classes) else f"class {label}"

    def _tile(self, key: str, path: str, title: str, *lines: str, heat: bool = False) -> str:
        below = "<br>".join([*(_unbroken(line) for line in lines), text(path)])
        shown = self.pictures.html(key, path)
        if heat and self.pictures.has(_HEAT + path):
            shown = f'<div class="heat">{shown}{self.pictures.html(_HEAT + path, f"{path}, saliency")}</div>'
        bold = f"<b>{_unbroken(title)}</b><br>" if title else ""
        return f'<figure class="tile">{shown}<figcaption>{bold}{below}</figcaption></figure>'

    def _tiles(self, places: Places, *, titled: bool = True, heat: bool = False) -> str:
        """Returns the tiles of those images that are in the page, and the paths of the others."""
        assert self.predictions is not None
        shown = [at for at in places.tolist() if self.pictures.has(_OWN + self.paths[at])]
        others = [self.paths[at] for at in places.tolist() if not self.pictures.has(_OWN + self.paths[at])]
        tiles = "".join(
            self._tile(
                _OWN + (path := self.paths[at]), path, self._kind(at) if titled else "", *self._sure(at), heat=heat
            )
            for at in shown
        )
        named = "".join(f"<li>{text(path)}</li>" for path in others[:_NAMED])
        if (more := len(others) - _NAMED) > 0:
            named += f"<li>and {more:,} more</li>"
        return (f'<div class="tiles">{tiles}</div>' if tiles else "") + (f"<ul>{named}</ul>" if named else "")

    def _kind(self, at: int) -> str:
        assert self.predictions is not None
        true, predicted = int(self.predictions.labels[at]), int(self.predictions.predicted[at])
        return self._name(true) if true == predicted else f"{self._name(true)} → {self._name(predicted)}"

    def _sure(self, at: int) -> list[str]:
        """A line on how probable the predicted class, and the true one if it is another, were to the network."""
        found = self.predictions
        if found is None or found.confidence is None or found.true_probability is None:
            return []
        if found.labels[at] == found.predicted[at]:
            return [f"right, {100 * found.true_probability[at]:.1f} %"]
        return [f"{100 * found.confidence[at]:.1f} % against {100 * found.true_probability[at]:.1f} %"]

    def _confident(self, predictions: Predictions) -> str:
        tiles = self._tiles(most_confident_errors(predictions, CONFIDENT), heat=True)
        if not tiles:
            return ""
        split = SPLIT_NAMES[predictions.split]
        told = (
            f"Errors on the {split} pictures in which the network was most sure: true class → predicted class, and the "
            "probabilities of the predicted and of the true one. Each picture is as the evaluation sees it, cropped."
        )
        if self.heat:
            told += " Below it, in red: where the network found what speaks for the predicted class (Grad-CAM)."
        return f"<h3>Most confident errors</h3><p>{told}</p>{tiles}"

    def _classes(self, predictions: Predictions) -> list[int]:
        """Returns the classes with images, the least accurate first; of many, the first ones."""
        rows = [row for row in results.class_rows(self.record, predictions) if row.score.total]
        return [row.label for row in sorted(rows, key=lambda row: row.score.percent)[:_MOST_CLASSES]]

    def _hardest(self, predictions: Predictions) -> str:
        classes = self._classes(predictions)
        blocks = [
            f"<h4>{text(self._name(label))}</h4>{self._tiles(hardest(predictions, label, _EACH))}" for label in classes
        ]
        if predictions.true_probability is None or not blocks:
            return ""
        whole = f'<div class="classes">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'
        if len(blocks) > _OPEN_CLASSES:
            whole = f"<details><summary>{len(blocks)} classes, the least accurate first</summary>{whole}</details>"
        return f"<h3>Hardest of each class</h3><p>Those whose own class was least probable to the network.</p>{whole}"

    def _index(self, pairs: Sequence[tuple[int, int, int]]) -> str:
        links = [
            f'<a class="chip" href="#{pair_id(true, predicted)}">{text(self._name(true))} → {text(self._name(predicted))} '
            f"<b>{count:,}</b></a>"
            for true, predicted, count in pairs
        ]
        more = links[_SHOWN_PAIRS:]
        rest = f"<details><summary>{len(more):,} more pairs</summary>{''.join(more)}</details>" if more else ""
        told = "True class → predicted class, and the number of errors; a click here or in the figure shows them."
        return f'<h3 id="pairs">Errors by pair</h3><p>{told}</p><div class="chips">{"".join(links[:_SHOWN_PAIRS])}{rest}</div>'

    def _pair(self, predictions: Predictions, true: int, predicted: int, places: Places) -> str:
        more = len(places) - _PER_PAIR
        file = "out-of-fold.parquet" if predictions.split == "folds" else f"evaluations/{predictions.split}.parquet"
        rest = f"<p>and {more:,} more, in {file}</p>" if more > 0 else ""
        title = f"{text(self._name(true))} → {text(self._name(predicted))}: {count_text(len(places), 'error')}"
        return (
            f'<div class="pair" id="{pair_id(true, predicted)}"><h4>{title} <a href="#pairs">close</a></h4>'
            f"{self._tiles(places[:_PER_PAIR], titled=False)}{rest}</div>"
        )


def _unbroken(line: str) -> str:
    """Returns a line as HTML in which numbers and their percent signs stay together."""
    return text(line).replace(" %", "&nbsp;%")


def _decoded(file: str) -> bytes:
    """Returns the bytes of a picture in base64; none if it is damaged."""
    try:
        return base64.b64decode(file, validate=True)
    except ValueError:
        return b""


def pair_id(true: int, predicted: int) -> str:
    """Returns the id of the errors of a pair of classes in the page. It begins with the name of the figure that links to it,
    as all links of a figure do."""
    return f"confusion-{true}-{predicted}"
