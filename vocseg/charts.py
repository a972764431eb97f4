"""Charts of HTML pages: bars with intervals, curves, reliability and confusion matrices, with values under the pointer.

A page that shows any needs ``STYLE`` and, at its end, ``SCRIPT``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vocseg import pages
from vocseg.plots import row_fractions, shortened

STYLE = """
:root { --series-1: #0a5fd0; --series-2: #c2410c; --series-3: #15803d; --series-4: #7e22ce; --series-5: #a16207;
  --series-6: #0e7490; --wrong: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --series-1: #6cb0ff; --series-2: #ff9f68; --series-3: #6fd391;
  --series-4: #cfa4ff; --series-5: #e7c55a; --series-6: #62d4e3; --wrong: #ff9f68; } }
.bars { list-style: none; margin: .8rem 0; padding: 0; columns: 26rem 2; column-gap: 2.5rem; font-size: .87rem; }
.bars li { display: grid; grid-template-columns: min(var(--names), 38%) 1fr 2.7rem; gap: .7rem; align-items: center;
  padding: .13rem 0; break-inside: avoid; }
.bars .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; }
.track { position: relative; height: .95rem; background: var(--soft); border-radius: 3px; }
.fill { position: absolute; inset: 0 auto 0 0; background: var(--series-1); opacity: .55; border-radius: 3px; }
.whisker { position: absolute; top: 50%; height: 2px; margin-top: -1px; background: var(--text); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -3px; width: 2px; height: 8px;
  background: var(--text); }
.whisker::before { left: 0; } .whisker::after { right: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.5rem; }
.chart { margin: 0; position: relative; display: block; }
.chart svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
.chart text { font: 11px system-ui, sans-serif; fill: var(--muted); }
.chart .grid { stroke: var(--line); } .chart .mark { stroke: var(--muted); stroke-dasharray: 3 3; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .cursor { stroke: var(--muted); visibility: hidden; }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; align-items: baseline; margin-bottom: .3rem;
  min-height: 4.2em; align-content: start; font-variant-numeric: tabular-nums; }
.chart figcaption b { color: var(--text); font-size: .95rem; flex-basis: 100%; }
.key::before { content: ""; display: inline-block; width: .9em; height: 3px; margin-right: .35em; vertical-align: .25em;
  background: var(--colour); }
.reliability { max-width: 34rem; } .reliability figcaption { min-height: 0; }
.reliability rect { fill: var(--series-1); } .reliability .bin { opacity: .55; }
.reliability .bin:hover { opacity: .8; }
.reliability .hit { fill: transparent; } .reliability .conf { stroke: var(--wrong); stroke-width: 2.5; }
.reliability .axis { fill: var(--text); }
.confusion .frame { overflow-x: auto; }
.confusion svg { display: block; height: auto; margin: 0 auto; }
.confusion text { font-family: system-ui, sans-serif; fill: var(--text); }
.confusion .board { fill: var(--soft); }
.confusion rect.right { fill: var(--series-1); } .confusion rect.error { fill: var(--wrong); }
.confusion .number { text-anchor: middle; pointer-events: none; }
.confusion .strong { fill: var(--page); }
.confusion .named .rows text, .confusion .named .columns text { opacity: .35; }
.confusion .named g text.current { opacity: 1; font-weight: 600; }
.controls { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; align-items: baseline; margin: .5rem 0;
  font-size: .9rem; }
.controls .lead, .note { color: var(--muted); } .note { font-size: .9rem; max-width: 50rem; }
.readout { display: block; min-height: 1.5em; font-size: .9rem; font-variant-numeric: tabular-nums; }
"""

SCRIPT = """
document.querySelectorAll(".chart[data-points]").forEach(chart => {
  const svg = chart.querySelector("svg"), cursor = svg.querySelector(".cursor");
  const {left, width, first, last, series} = JSON.parse(chart.dataset.points);
  const values = [...chart.querySelectorAll(".key output")], when = chart.querySelector(".when");
  const epochs = [...new Set(series.flatMap(points => points.map(point => point[0])))];
  const show = epoch => {
    values.forEach((value, number) => {
      const point = series[number].find(point => point[0] === epoch);
      value.value = point ? point[1] : "";
    });
    when.value = epoch === undefined ? "" : "epoch " + epoch;
    cursor.style.visibility = epoch === undefined ? "hidden" : "visible";
    if (epoch === undefined) return;
    const x = left + width * (last > first ? (epoch - first) / (last - first) : .5);
    cursor.setAttribute("x1", x); cursor.setAttribute("x2", x);
  };
  const follow = event => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / width;
    const epoch = first + at * (last - first);
    show(epochs.reduce((best, each) => Math.abs(each - epoch) < Math.abs(best - epoch) ? each : best));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", () => show());
});
document.querySelectorAll(".confusion").forEach(chart => {
  const {names, orders, cell, middle, counts, sums} = JSON.parse(chart.dataset.matrix);
  const svg = chart.querySelector("svg");
  const readout = chart.querySelector(".readout"), empty = readout.textContent;
  const rows = [...svg.querySelectorAll(".rows text")], columns = [...svg.querySelectorAll(".columns text")];
  let order = orders[0];
  chart.addEventListener("change", event => {
    order = orders[event.target.value];
    const place = [];
    order.forEach((label, position) => place[label] = position * cell);
    svg.querySelectorAll("g[data-cell]").forEach(group => {
      const [row, column] = group.dataset.cell.split(" ");
      group.setAttribute("transform", `translate(${place[column]} ${place[row]})`);
    });
    rows.forEach((text, label) => text.setAttribute("transform", `translate(0 ${place[label]})`));
    columns.forEach((text, label) =>
      text.setAttribute("transform", `translate(${place[label] + middle} -6) rotate(-90)`));
  });
  const point = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const row = order[Math.floor(at.y / cell)], column = order[Math.floor(at.x / cell)];
    const inside = row !== undefined && column !== undefined;
    svg.classList.toggle("named", inside);
    rows.forEach((text, label) => text.classList.toggle("current", label === row));
    columns.forEach((text, label) => text.classList.toggle("current", label === column));
    if (!inside) { readout.textContent = empty; return; }
    const pixels = counts[row + " " + column] ?? 0, sum = sums[row];
    readout.textContent = `${names[row]} predicted as ${names[column]}: ` + (sum
      ? `${(100 * pixels / sum).toFixed(2)} % (${pixels.toLocaleString("en")} of ${sum.toLocaleString("en")} pixels)`
      : "no pixels");
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => { svg.classList.remove("named"); readout.textContent = empty; });
});
document.querySelectorAll("table.sortable").forEach(table => table.addEventListener("click", event => {
  const button = event.target.closest("th button");
  if (!button) return;
  const head = button.parentNode, column = head.cellIndex, body = table.tBodies[0];
  const up = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].textContent;
  const compare = (a, b) => isNaN(key(a)) || isNaN(key(b)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
  body.append(...[...body.rows].sort((a, b) => up ? compare(a, b) : compare(b, a)));
}));
"""

Points = Sequence[tuple[float, float]]
"""Epochs and values."""


NUMBERED = 30
"""Up to so many classes the cells of a confusion matrix have their numbers."""


class Bar(NamedTuple):
    """One bar: its name, its value and its interval (both from 0 to 1), and more words for the pointer."""

    name: str
    value: float
    interval: tuple[float, float] | None = None
    more: str = ""


def bars(entries: Sequence[Bar]) -> str:
    """Builds horizontal bars from 0 to 1, with whiskers for the intervals; NaN has no bar."""
    items = []
    for bar in entries:
        words = f"{bar.name}: {bar.value:.4f}" if bar.value == bar.value else f"{bar.name}: does not occur"
        if bar.value == bar.value and bar.interval is not None:
            words += ", 95 % interval {:.4f} to {:.4f}".format(*bar.interval)
        words += f", {bar.more}" if bar.more else ""
        items.append(
            f'<li title="{pages.text(words)}"><span class="name">{pages.text(bar.name)}</span>'
            f'{track(bar.value, bar.interval)}<span class="value">{number(bar.value)}</span></li>'
        )
    names = min(max((len(bar.name) for bar in entries), default=0), 24)
    return f'<ol class="bars" style="--names: {names * 0.52 + 0.6:.1f}rem">{"".join(items)}</ol>'


def track(value: float, interval: tuple[float, float] | None = None) -> str:
    """Builds one bar from 0 to 1, with a whisker for the interval; NaN has none."""
    drawn = ""
    if value == value:
        drawn = f'<span class="fill" style="width: {100 * value:.1f}%"></span>'
        if interval is not None:
            low, high = interval
            drawn += f'<span class="whisker" style="left: {100 * low:.1f}%; width: {100 * (high - low):.1f}%"></span>'
    return f'<span class="track">{drawn}</span>'


def curves(title: str, series: Mapping[str, Points], mark: tuple[float, str] | None = None) -> str:
    """Builds a chart of curves by epoch; empty without a point.

    Args:
        title: of the chart.
        series: ``{name: points}``.
        mark: an epoch to mark, and the word beside the mark.
    """
    series = {name: [point for point in points if math.isfinite(point[1])] for name, points in series.items()}
    points = [point for each in series.values() for point in each]
    if not points:
        return ""
    width, height, left, top, bottom = 400, 230, 44, 12, 22
    first, last = min(epoch for epoch, _ in points), max(epoch for epoch, _ in points)
    ticks = _ticks(min(value for _, value in points), max(value for _, value in points))

    def x(epoch: float) -> float:
        return left + (width - left - 8) * ((epoch - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - ticks[0]) / (ticks[-1] - ticks[0])

    parts = []
    for tick in ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - 8}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.6g}</text>')
    for epoch in _whole_ticks(first, last):
        parts.append(f'<text x="{x(epoch):.1f}" y="{height - 5}" text-anchor="middle">{epoch:g}</text>')
    if mark is not None and first <= mark[0] <= last:
        at, near_end = x(mark[0]), mark[0] > (first + last) / 2
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{height - bottom}"/>')
        place = f'x="{at - 5:.1f}" text-anchor="end"' if near_end else f'x="{at + 5:.1f}"'
        parts.append(f'<text {place} y="{height - bottom - 6}">{pages.text(mark[1])}</text>')
    keys = []
    for index, (name, each) in enumerate(series.items()):
        colour = f"var(--series-{index % 6 + 1})"
        line = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in each)
        parts.append(f'<polyline class="line" style="stroke: {colour}" points="{line}"/>')
        if len(each) <= 12:
            parts += [f'<circle cx="{x(e):.1f}" cy="{y(v):.1f}" r="3" style="fill: {colour}"/>' for e, v in each]
        keys.append(f'<span class="key" style="--colour: {colour}">{pages.text(name)} <output></output></span>')
    parts.append(f'<line class="cursor" y1="{top}" y2="{height - bottom}"/>')
    data = {
        "left": left,
        "width": width - left - 8,
        "first": first,
        "last": last,
        "series": [[(epoch, f"{value:.4g}") for epoch, value in each] for each in series.values()],
    }
    return (
        f'<figure class="chart" data-points="{pages.text(json.dumps(data))}"><figcaption><b>{pages.text(title)}</b>'
        f'{"".join(keys)}<output class="when"></output></figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{pages.text(title)} by epoch">{"".join(parts)}</svg></figure>'
    )


def reliability(confidence: Sequence[float], accuracy: Sequence[float], pixels: Sequence[int]) -> str:
    """Builds a reliability chart: the accuracy of each bin of confidence, and below it the share of the pixels.

    Args:
        confidence: mean of each bin, from 0 to 1; NaN for an empty one. The bins have equal widths.
        accuracy: of each bin.
        pixels: in each bin.
    """
    left, right, top, plot, gap, small = 44, 392, 10, 220, 26, 46
    width, base, floor = (right - left) / len(pixels), top + plot, top + plot + gap + small
    parts = []
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        x, y = left + (right - left) * tick, base - plot * tick
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text x="{x:.1f}" y="{floor + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>')
    total, most = sum(pixels), max(pixels)
    for index, (mean, share, count) in enumerate(zip(confidence, accuracy, pixels, strict=True)):
        if not count:
            continue
        x, bar = left + index * width, f'width="{width - 2:.1f}"'
        rows = ((base, plot * share), (floor, small * count / most))
        parts.append('<g class="bin">')
        parts += [f'<rect x="{x + 1:.1f}" y="{at - high:.1f}" {bar} height="{high:.1f}"/>' for at, high in rows]
        words = f"Confidence {mean:.3f}: {share:.1%} of the pixels right, {count / total:.2%} of all ({count:,})"
        parts.append(
            f'<rect class="hit" x="{x:.1f}" y="{top}" width="{width:.1f}" height="{floor - top}">'
            f"<title>{words}</title></rect></g>"
        )
        y = base - plot * mean
        parts.append(f'<line class="conf" x1="{x + 1:.1f}" x2="{x + width - 1:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<line class="mark" x1="{left}" y1="{base}" x2="{right}" y2="{top}"/>')
    parts.append(f'<text class="axis" x="{left + 6}" y="{base + gap - 8}">share of the pixels</text>')
    keys = '<span class="key" style="--colour: var(--series-1)">share that is right</span>'
    keys += '<span class="key" style="--colour: var(--wrong)">mean confidence</span>'
    return (
        f'<figure class="chart reliability"><figcaption>{keys}</figcaption><svg viewBox="0 0 400 {floor + 36}" '
        f'role="img" aria-label="Share of right pixels by confidence">{"".join(parts)}<text class="axis" '
        f'x="{(left + right) / 2:.0f}" y="{floor + 31}" text-anchor="middle">confidence</text></svg></figure>'
    )


def confusion(matrix: np.ndarray, class_names: Sequence[str], orders: Mapping[str, Sequence[int]]) -> str:
    """Builds a confusion matrix with each row divided by its sum.

    Args:
        matrix: pixel counts [C+1, C]; row C (void) is left out.
        class_names: C names.
        orders: ``{title: labels}``, the orders of the classes to choose from; the first is shown.
    """
    count = len(class_names)
    fractions, counts = row_fractions(matrix), matrix[:count]
    cell = 32 if count <= NUMBERED else 10
    size = 11 if count <= NUMBERED else 8
    margin = max(len(shortened(name)) for name in class_names) * size * 0.6 + 14
    drawn = []
    for row, column in np.argwhere(fractions >= 0.0005).tolist():
        share = fractions[row, column]
        # the square root makes errors of a few per cent visible
        body = (
            f'<rect class="{"right" if row == column else "error"}" width="{cell - 1}" height="{cell - 1}" '
            f'fill-opacity="{math.sqrt(share):.2f}"/>'
        )
        if count <= NUMBERED and share >= 0.01:
            strong = " strong" if share > 0.5 else ""
            body += (
                f'<text class="number{strong}" x="{cell / 2:g}" y="{cell / 2 + 4:g}" font-size="{size}">'
                f"{100 * share:.0f}</text>"
            )
        drawn.append(f'<g data-cell="{row} {column}" transform="translate({column * cell} {row * cell})">{body}</g>')
    labels = [pages.text(shortened(name)) for name in class_names]
    middle = round(cell / 2 + size * 0.35, 1)
    rows = "".join(
        f'<text x="-6" y="{middle}" text-anchor="end" transform="translate(0 {index * cell})">{name}</text>'
        for index, name in enumerate(labels)
    )
    columns = "".join(
        f'<text transform="translate({index * cell + middle} -6) rotate(-90)">{name}</text>'
        for index, name in enumerate(labels)
    )
    side, total = count * cell, count * cell + margin
    data = {
        "names": list(class_names),
        "orders": [list(order) for order in orders.values()],
        "cell": cell,
        "middle": middle,
        "counts": {f"{row} {column}": int(counts[row, column]) for row, column in np.argwhere(counts > 0).tolist()},
        "sums": counts.sum(1).tolist(),
    }
    choices = "".join(
        f'<label><input type="radio" name="order" value="{index}" autocomplete="off"{"" if index else " checked"}> '
        f"{pages.text(title)}</label>"
        for index, title in enumerate(orders)
    )
    return (
        f'<form class="confusion" data-matrix="{pages.text(json.dumps(data, separators=(",", ":")))}">'
        f'<div class="controls"><span class="lead">Order</span>{choices}</div>'
        '<output class="readout">Point at a cell for its classes and pixels.</output>'
        f'<div class="frame"><svg width="{total:.0f}" viewBox="{-margin:.0f} {-margin:.0f} {total:.0f} {total:.0f}" '
        f'font-size="{size}" role="img" aria-label="Confusion matrix, rows are true classes">'
        f'<rect class="board" width="{side}" height="{side}"/>{"".join(drawn)}<g class="rows">{rows}</g>'
        f'<g class="columns">{columns}</g></svg></div></form>'
    )


def number(value: float | None) -> str:
    """A score with three decimals; a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.3f}"


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round values that contain an interval."""
    if high <= low:
        low, high = low - abs(low or 1) / 2, high + abs(high or 1) / 2
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [index * step for index in range(math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9) + 1)]


def _whole_ticks(first: float, last: float) -> list[int]:
    """At most eight whole numbers between two epochs."""
    steps = (factor * 10**power for power in range(9) for factor in (1, 2, 5))
    step = next(step for step in steps if (last - first) / step <= 7)
    return list(range(math.ceil(first / step) * step, math.floor(last) + 1, step))
