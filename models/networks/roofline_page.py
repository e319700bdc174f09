"""The cost of a network as a page: its layers on the roofline of this machine, and the figures of each."""

import math
from collections.abc import Iterator, Mapping
from html import escape
from typing import NamedTuple

from models.networks.cost import LayerCost, NetworkCost
from models.networks.roofline import Machine, Timing, predict_seconds

WIDTH, HEIGHT, MARGIN = 760, 420, 60
"""Pixels of the plot, and of the room for its axes."""
NUM_LABELS, LINE_HEIGHT = 8, 14
"""The slowest layers have their names in the plot, this many pixels apart."""
COLUMNS = (
    *("layer", "kind", "multiply-adds", "parameters", "weights, bytes", "activations, bytes", "operations/byte"),
    *("bound by", "predicted, ms", "measured, ms"),
)
COLOURS = {"memory": "#c2410c", "compute": "#1d4ed8"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
svg text { font-size: 12px; } table { border-collapse: collapse; font-size: 13px; }
th, td { padding: 2px 8px; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child, td:nth-child(2), th:nth-child(2) { text-align: left; }
"""


def draw_page(title: str, cost: NetworkCost, machine: Machine, timing: Timing) -> str:
    """Make a page of HTML that needs no other file."""
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table(cost, machine, timing)
    )
    header = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{escape(summarize(cost, machine, timing))}</p>{_plot(cost, machine, timing)}"
        f"<table><tr>{header}</tr>{rows}</table>"
    )


def summarize(cost: NetworkCost, machine: Machine, timing: Timing) -> str:
    """Give the totals in a few sentences."""
    by_memory = sum(timing.layers[layer.name] for layer in cost.layers if machine.is_bound_by_memory(layer))
    return (
        f"{cost.multiply_adds:,} multiply-adds and {cost.num_parameters:,} parameters. Weights take "
        f"{cost.weight_bytes / 1e6:.1f} MB, activations at most {cost.peak_bytes / 1e6:.2f} MB at a time. This machine "
        f"computes {machine.operations_per_second / 1e9:.0f} billion operations a second and reads "
        f"{machine.bytes_per_second / 1e9:.1f} GB a second, with {machine.num_threads} threads. One image: predicted "
        f"{1000 * predict_seconds(machine, cost):.2f} ms, measured {1000 * timing.total:.2f} ms, of which layers "
        f"bound by memory take {by_memory / max(sum(timing.layers.values()), 1e-12):.0%}."
    )


def table(cost: NetworkCost, machine: Machine, timing: Timing) -> Iterator[tuple[str, ...]]:
    """Give a row of `COLUMNS` for each layer."""
    for layer in cost.layers:
        counts = (layer.multiply_adds, layer.num_parameters, layer.weight_bytes, layer.activation_bytes)
        yield (
            layer.name or "(between layers)",
            layer.kind,
            *(f"{count:,}" for count in counts),
            f"{layer.intensity:.2f}",
            bound(layer, machine),
            f"{1000 * machine.seconds(layer):.3f}",
            f"{1000 * timing.layers[layer.name]:.3f}",
        )


def bound(layer: LayerCost, machine: Machine) -> str:
    """Name what a layer waits for: memory or compute."""
    return "memory" if machine.is_bound_by_memory(layer) else "compute"


def _plot(cost: NetworkCost, machine: Machine, timing: Timing) -> str:
    """Draw the layers that multiply: operations per byte to the right, operations per second upwards."""
    layers = [layer for layer in cost.layers if layer.multiply_adds]
    rates = {layer.name: 2 * layer.multiply_adds / max(timing.layers[layer.name], 1e-9) for layer in layers}
    ridge = machine.operations_per_second / machine.bytes_per_second
    left, right = _decades([layer.intensity for layer in layers] + [ridge])
    bottom, top = _decades([*rates.values(), machine.operations_per_second])

    def x(intensity: float) -> float:
        return MARGIN + (math.log10(intensity) - left) / (right - left) * (WIDTH - 2 * MARGIN)

    def y(rate: float) -> float:
        return HEIGHT - MARGIN - (math.log10(rate) - bottom) / (top - bottom) * (HEIGHT - 2 * MARGIN)

    start = max(10.0**left, 10.0**bottom / machine.bytes_per_second)
    corners = (
        (start, start * machine.bytes_per_second),
        *((at, machine.operations_per_second) for at in (ridge, 10.0**right)),
    )
    roof = " ".join(f"{x(intensity):.1f},{y(rate):.1f}" for intensity, rate in corners)
    parts = [f'<polyline points="{roof}" fill="none" stroke="#111" stroke-width="2"/>']
    across, upwards = range(left, right + 1), range(bottom, top + 1)
    parts += [_text(x(10.0**power), HEIGHT - MARGIN + 18, f"{10.0**power:g}", "middle") for power in across]
    parts += [_text(MARGIN - 8, y(10.0**power) + 4, f"{10.0 ** (power - 9):g}", "end") for power in upwards]
    parts.append(_text(WIDTH / 2, HEIGHT - 15, "operations per byte", "middle"))
    parts.append(_text(MARGIN, MARGIN - 24, "billion operations per second; an area is a share of the time", "start"))
    circles: dict[str, _Circle] = {}
    for layer in layers:
        radius = 3 + 25 * math.sqrt(timing.layers[layer.name] / timing.total)
        circle = circles[layer.name] = _Circle(x(layer.intensity), y(rates[layer.name]), radius)
        colour, title = COLOURS[bound(layer, machine)], escape(f"{layer.name} ({layer.kind})")
        parts.append(
            f'<circle cx="{circle.x:.1f}" cy="{circle.y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="0.4">'
            f"<title>{title}</title></circle>"
        )
    slowest = sorted(circles, key=lambda name: -timing.layers[name])[:NUM_LABELS]
    parts += _labels({name: circles[name] for name in slowest})
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="roofline">{"".join(parts)}</svg>'


class _Circle(NamedTuple):
    x: float
    y: float
    radius: float


def _labels(circles: Mapping[str, _Circle]) -> Iterator[str]:
    """Write each name to the right of its circle, and below the name above it; a line joins the two."""
    before = -math.inf
    for name, (x, y, radius) in sorted(circles.items(), key=lambda item: item[1].y):
        place = before = max(y, before + LINE_HEIGHT)
        yield f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x + radius + 8:.1f}" y2="{place:.1f}" stroke="#999"/>'
        yield _text(x + radius + 10, place + 4, name, "start")


def _decades(values: list[float]) -> tuple[int, int]:
    """Give the powers of ten between which all values lie."""
    return math.floor(math.log10(min(values))), math.floor(math.log10(max(values))) + 1


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
