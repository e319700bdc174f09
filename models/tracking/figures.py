"""Figures of a training run. Shapes: N images of H x W pixels, K variants of each, C classes."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, PercentFormatter

Pixels = npt.NDArray[np.uint8]
History = Mapping[str, Sequence[tuple[int, float]]]

# The palette of Okabe and Ito, for colour-blind readers.
_BLUE, _ORANGE, _RED = "#0072B2", "#E69F00", "#B03A00"
_INK, _FAINT = "#222222", "#888888"
_SPLITS = (("train", "training", _BLUE), ("val", "validation", _ORANGE))

# matplotlib uses the first installed font that has the character. DejaVu Sans comes with matplotlib.
_FAMILIES = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC", "Hiragino Sans", "Malgun Gothic", "Arial Unicode MS"),
    *("Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI"),
)

_MAX_COUNTED = 25
"""maximum number of classes for which a confusion matrix shows counts"""
_MAX_NAMED = 100
"""maximum number of classes for which a confusion matrix shows names"""


def learning_curves(history: History) -> Figure:
    """Draw loss and accuracy against the epoch, for training and validation.

    `history` has (epoch, value) by metric. The metrics `train/loss`, `val/loss`, `train/accuracy` and `val/accuracy`
    are drawn if present. Of two values for one epoch, the later counts. Values that are not finite are left out.
    """
    figure = _figure(10, 4)
    loss, accuracy = figure.subplots(1, 2)
    _curves(loss, history, "loss", least_span=0.1)
    _title(loss, "Loss", min(_points(history, "val/loss"), key=itemgetter(1), default=None), "lowest {:.3g}")
    _curves(accuracy, history, "accuracy", least_span=0.05)
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    _title(accuracy, "Accuracy", max(_points(history, "val/accuracy"), key=itemgetter(1), default=None), "best {:.1%}")
    return figure


def _curves(axes: Axes, history: History, metric: str, least_span: float) -> None:
    for split, label, color in _SPLITS:
        points = _points(history, f"{split}/{metric}")
        if points:
            # Markers show the values, in particular a single value.
            marker = "o" if len(points) <= 30 else ""
            axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=2, marker=marker, markersize=5)
    axes.set_xlabel("epoch", color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4")
    axes.set_axisbelow(True)
    if axes.lines:
        bottom, top = axes.get_ylim()
        slack = max(0.0, least_span - (top - bottom)) / 2  # keeps noise from filling the panel
        axes.set_ylim(bottom - slack, top + slack)
        axes.legend(frameon=False)
    else:
        axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", va="center", color=_FAINT)


def _points(history: History, key: str) -> list[tuple[int, float]]:
    by_epoch = dict(history.get(key, ()))
    return sorted((epoch, value) for epoch, value in by_epoch.items() if math.isfinite(value))


def _title(axes: Axes, name: str, best: tuple[int, float] | None, wording: str) -> None:
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", color=_INK)
    if best is not None:
        text = f"validation: {wording.format(best[1])} in epoch {best[0]}".replace("%", " %")
        axes.set_title(text, loc="right", fontsize=9, color=_FAINT)


def confusion_matrix(counts: npt.NDArray[np.int64], classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix from `counts` [C, C]: rows are true classes, columns are predicted classes.

    Colours are shares of the row, so that rare classes show as clearly as frequent classes. Counts are shown for up to
    25 classes, names for up to 100.
    """
    num_classes = len(classes)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
    cell = _cell_inches(num_classes)
    names = [_printable(name, index) for index, name in enumerate(classes)]
    size = max(num_classes * cell, 3.2)
    figure = _figure(size + 2.4, size + 1.6)
    axes = figure.subplots()
    # The square root makes an error rate of 1/50 visible beside a diagonal near one.
    picture = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
    _name_cells(axes, names, cell)
    if num_classes <= _MAX_COUNTED:
        _count_cells(axes, counts, shares, cell)
    colors = figure.colorbar(picture, ax=axes, shrink=min(1.0, 4 / size), ticks=[0, 0.05, 0.25, 0.5, 1], pad=0.02)
    colors.ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    colors.set_label("share of the true class")
    colors.outline.set_visible(False)
    right, total = int(counts.trace()), int(counts.sum())
    title = f"{right:,} of {total:,} images right" + (f" ({right / total:.1%})".replace("%", " %") if total else "")
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    return figure


def _cell_inches(num_classes: int) -> float:
    if num_classes <= _MAX_COUNTED:
        return max(0.45, 3.2 / num_classes)
    return 0.17 if num_classes <= _MAX_NAMED else 14 / num_classes


def _name_cells(axes: Axes, names: list[str], cell: float) -> None:
    axes.set_xlabel("predicted", color=_INK)
    axes.set_ylabel("true", color=_INK)
    axes.spines[:].set_color("#CCCCCC")
    axes.tick_params(length=0)
    if len(names) > _MAX_NAMED:
        return
    style = _name_style(size=min(10.0, cell * 72 * 0.55))
    room = cell * 72 / (style["size"] * 0.62)  # in characters
    upright = max(map(_columns, names)) > room
    axes.set_xticks(range(len(names)), names, rotation=90 if upright else 0, **style)
    axes.set_yticks(range(len(names)), names, **style)
    edges = np.arange(len(names) + 1) - 0.5
    axes.hlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=cell * 2)
    axes.vlines(edges, -0.5, len(names) - 0.5, color="white", linewidth=cell * 2)


def _count_cells(axes: Axes, counts: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], cell: float) -> None:
    digits = len(str(counts.max(initial=0)))
    size = min(10.0, cell * 72 * 0.78 / (0.64 * digits))
    for row, column in np.argwhere(counts):
        color = "white" if shares[row, column] > 0.35 else _INK
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=color)


def reliability_diagram(curves: Mapping[str, tuple[Sequence[float], Sequence[float], float]]) -> Figure:
    """Draw accuracy against confidence. A calibrated model is on the diagonal.

    `curves` has the confidences and accuracies of the bins, and the expected calibration error, by name.
    """
    figure = _figure(5, 5)
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color=_FAINT, linewidth=1, linestyle="--")
    for (name, (confidence, accuracy, error)), color in zip(curves.items(), (_ORANGE, _BLUE, _RED), strict=False):
        label = f"{name}: error {error:.1%}".replace("%", " %")
        axes.plot(confidence, accuracy, color=color, label=label, linewidth=2, marker="o", markersize=5)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    axes.set_title("Reliability", loc="left", fontsize=12, fontweight="bold", color=_INK)
    return figure


def worst_errors(
    images: Pixels,
    truths: npt.NDArray[np.int64],
    predictions: npt.NDArray[np.int64],
    confidences: npt.NDArray[np.floating],
    classes: Sequence[str],
) -> Figure:
    """Show images uint8 [N, H, W, 3] with their true and predicted classes, in the given order.

    `truths` and `predictions` are class indices [N]. `confidences` are probabilities [N].
    """
    if not len(images):
        return _note("No errors on these images")
    num_columns = min(6, max(2, math.ceil(math.sqrt(len(images)))), max(2, len(images)))
    height, width = images.shape[1] / images.shape[2], 1.15
    row_height = height + 0.3
    axes = _board(num_columns * width, math.ceil(len(images) / num_columns) * row_height, "The surest errors", 1.9)
    for index, image in enumerate(images):
        left, top = index % num_columns * width, index // num_columns * row_height
        _show(axes, image, left, top)
        predicted, true = (
            _printable(classes[labels[index]], int(labels[index]), 15) for labels in (predictions, truths)
        )
        below = top + height + 0.04
        confidence = f"{confidences[index]:.0%}".replace("%", " %")
        axes.text(left, below, f"true: {true}", va="top", color=_INK, **_name_style(8))
        axes.text(left, below + 0.1, f"taken for: {predicted}, {confidence}", va="top", color=_RED, **_name_style(8))
    return axes.get_figure(root=True)  # type: ignore[return-value]


def augmentation_preview(originals: Pixels, augmented: Pixels) -> Figure:
    """Show images uint8 [N, H, W, 3], each beside its K augmented variants, uint8 [N, K, H, W, 3].

    The variants may have another size than the stored images.
    """
    num_images, num_variants = augmented.shape[:2]
    height = originals.shape[1] / originals.shape[2]
    step, first = 1.06, 1.2
    axes = _board(first + num_variants * step, num_images * (height + 0.06) + 0.2, "", 1.1)
    axes.text(0, 0, "stored", va="top", fontsize=10, color=_INK)
    axes.text(first, 0, "in training", va="top", fontsize=10, color=_INK)
    for row in range(num_images):
        top = 0.2 + row * (height + 0.06)
        _show(axes, originals[row], 0, top)
        for column in range(num_variants):
            _show(axes, augmented[row, column], first + column * step, top)
    return axes.get_figure(root=True)  # type: ignore[return-value]


def _figure(width: float, height: float) -> Figure:
    """Make a figure, in inches. pyplot would keep the figure in memory and look for a screen."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width, height), dpi=120, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _board(width: float, height: float, title: str, scale: float) -> Axes:
    """Make a page for images that are one unit, `scale` inches, wide. x points right from 0, y points down from 0."""
    margin = 0.15
    header = 0.25 if title else 0.0
    figure = Figure(figsize=((width + 2 * margin) * scale, (height + 2 * margin + header) * scale), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-margin, width + margin), ylim=(height + margin, -margin - header), autoscale_on=False)
    axes.axis("off")
    axes.text(0, -header, title, va="top", fontsize=12, fontweight="bold", color=_INK)
    return axes


def _show(axes: Axes, image: Pixels, left: float, top: float) -> None:
    bottom = top + image.shape[0] / image.shape[1]
    axes.imshow(image, extent=(left, left + 1, bottom, top), aspect="auto")


def _note(text: str) -> Figure:
    figure = _figure(5, 1.5)
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=12, color=_FAINT)
    return figure


def _name_style(size: float) -> dict[str, Any]:
    """Text properties for class names, which may contain any letters, and dollar signs that do not start a formula."""
    return {"size": size, "family": list(_installed_families()), "parse_math": False}


def _printable(name: str, index: int, max_columns: int = 24) -> str:
    """Shorten a name to one line. A name without glyphs in the installed fonts is replaced by the class's number."""
    name = " ".join(name.split())
    if not name or not all(map(_has_glyph, name)):
        return f"class {index}"
    if _columns(name) <= max_columns:
        return name
    kept = name
    while _columns(kept) >= max_columns:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def _columns(text: str) -> int:
    """Width in Latin letters. A Chinese, Japanese or Korean character is two letters wide."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@cache
def _installed_families() -> tuple[str, ...]:
    installed = {font.name for font in fontManager.ttflist}
    return tuple(family for family in _FAMILIES if family in installed)


@cache
def _has_glyph(character: str) -> bool:
    fonts = (get_font(findfont(FontProperties(family=[family]))) for family in _installed_families())
    return any(font.get_char_index(ord(character)) for font in fonts)
