"""Tables and the figure of `growth`."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from timing import markdown_table

from forestgaps_jax.figures.canvas import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "batch_size": ("batch size, tiles", 1, "tiles"),
    "tile_size": ("side of a tile, px", 2, "pixels"),
    "features": ("features, channels of the first level", 2, "features squared"),
}
"""What is varied: its label, and the power of it that the work has where nothing else counts, in words."""
QUANTITIES = {"seconds": "seconds a training step", "memory": "planned memory, GB"}
COLOURS = ("#1b7837", "#d95f02", "#7570b3", "#666666")

Row = dict[str, Any]


def value_of(row: Row, quantity: str) -> float:
    """Median seconds, or planned memory in GB (NaN where the compiler does not tell)."""
    if quantity == "seconds":
        return row["seconds"][1]
    return math.nan if row["planned_bytes"] is None else row["planned_bytes"] / 1e9


def along(found: Row, model: str, axis: str) -> list[Row]:
    """The steps of a model in which all but one axis are as in the base, from small to large."""
    fixed = {name: value for name, value in found["base"].items() if name != axis}
    rows = [row for row in found["steps"] if row["model"] == model]
    rows = [row for row in rows if all(row[name] == value for name, value in fixed.items())]
    return sorted(rows, key=lambda row: row[axis])


def exponent(rows: list[Row], axis: str, quantity: str) -> float:
    """The slope in logarithms between the least and the largest size."""
    first, last = rows[0], rows[-1]
    rise = math.log(value_of(last, quantity) / value_of(first, quantity))
    return rise / math.log(last[axis] / first[axis])


def models_of(found: Row) -> list[str]:
    """In the order of the measurement."""
    return list(dict.fromkeys(row["model"] for row in found["steps"]))


def steps_table(found: Row) -> str:
    """A row a size, then the exponents."""
    titles = ("model", "batch x tile, features", "ms a step", "quartiles", "Mpx/s", "GFLOP/s", "planned MB")
    rows = [step_row(row) for row in found["steps"]]
    slopes = []
    for model in models_of(found):
        for axis, (label, _, _) in AXES.items():
            series = along(found, model, axis)
            if len(series) > 1:
                told = (f"{exponent(series, axis, quantity):.2f}" for quantity in QUANTITIES)
                slopes.append((f"{model}, {label}", *told))
    exponents = markdown_table(("exponent of", "seconds", "memory"), slopes)
    return f"{markdown_table(titles, rows)}\n\n{exponents}"


def step_row(row: Row) -> list[str]:
    """One size of a model."""
    low, median, high = row["seconds"]
    pixels = row["batch_size"] * row["tile_size"] ** 2
    return [
        row["model"],
        f"{row['batch_size']} x {row['tile_size']} px, {row['features']}",
        f"{1e3 * median:.0f}",
        f"{1e3 * low:.0f} to {1e3 * high:.0f}",
        f"{pixels / median / 1e6:.3g}",
        "not told" if row["flops"] is None else f"{row['flops'] / median / 1e9:.0f}",
        f"{1e3 * value_of(row, 'memory'):.0f}",
    ]


def thresholds_table(found: Row) -> str:
    """A column a number of thresholds."""
    parts = found["thresholds"]
    first = next(iter(parts.values()))[1]
    return markdown_table(
        ("listed thresholds", *parts),
        [
            ["steps a second", *(f"{1 / median:.2f}" for _, median, _ in parts.values())],
            ["quartiles", *(f"{1 / high:.2f} to {1 / low:.2f}" for low, _, high in parts.values())],
            ["seconds, of the first", *(f"{median / first:.3f}" for _, median, _ in parts.values())],
        ],
    )


def maps_table(found: Row) -> str:
    """A row each way to use a network."""
    rows = []
    for row in found["maps"]:
        low, median, high = row["seconds"]
        rate = row["pixels"] / 1e6
        cells = [f"{row['model']}, {row['what']}", f"{rate:.3g}", f"{median:.2f}", f"{low:.2f} to {high:.2f}"]
        rows.append([*cells, f"{rate / median:.3g}"])
    return markdown_table(("what", "Mpx", "seconds", "quartiles", "Mpx/s"), rows)


TABLES: dict[str, Callable[[Row], str]] = {
    "steps": steps_table,
    "thresholds": thresholds_table,
    "maps": maps_table,
}


def draw(found: Row) -> "Figure":
    """Seconds and memory against each axis, in logarithms; a row a quantity."""
    figure = new_figure(11.0, 6.4)
    grid = figure.subplots(len(QUANTITIES), len(AXES), sharex="col", sharey="row")
    for row, quantity in zip(grid, QUANTITIES, strict=True):
        for panel, axis in zip(row, AXES, strict=True):
            draw_panel(panel, found, axis, quantity)
        row[0].set_ylabel(QUANTITIES[quantity])
    for above, panel, (label, _, words) in zip(*grid, AXES.values(), strict=True):
        above.set_title(f"dotted: proportional to {words}", fontsize=9, color="0.35")
        panel.set_xlabel(label)
    grid[0, 0].legend(frameon=False, loc="upper left")
    size = found["base"]
    told = f"{size['batch_size']} x {size['tile_size']} px, {size['features']} features"
    figure.suptitle(f"A training step, one size varied around {told}, on {where(found)}", fontsize=11)
    return figure


def where(found: Row) -> str:
    """The device, in words."""
    machine = found["machine"]
    return f"{machine['cores']} cores of {machine['cpu']}" if found["device"] == "cpu" else found["device"]


def draw_panel(panel: "Axes", found: Row, axis: str, quantity: str) -> None:
    """One quantity against one axis, with a line of what is proportional to the work."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    power = AXES[axis][1]
    values: list[int] = []
    for model, colour in zip(models_of(found), COLOURS, strict=False):
        rows = along(found, model, axis)
        values = [row[axis] for row in rows]
        medians = [value_of(row, quantity) for row in rows]
        panel.plot(values, medians, "o-", color=colour, label=model, markersize=5, linewidth=1.8)
        if quantity == "seconds":
            quarters = [row["seconds"] for row in rows]
            panel.fill_between(
                values,
                [low for low, *_ in quarters],
                [high for *_, high in quarters],
                color=colour,
                alpha=0.2,
            )
        guide = [medians[-1] * (value / values[-1]) ** power for value in values]
        panel.plot(values, guide, ":", color="0.55", linewidth=1.2, zorder=0)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xticks(values, [str(value) for value in values])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.grid(which="major", color="0.9", linewidth=0.8)
    panel.spines[["top", "right"]].set_visible(False)
