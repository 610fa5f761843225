"""Results on paper: the table of a case, the table of the goals, the charts. Run: report.py RESULTS.jsonl ...

Knows results as they stand in results/*.jsonl; measures nothing. Of several results of a case the last one counts,
unless it compares fewer contenders than one before it, or is that of a quick run.
Charts need matplotlib, and are left out with a word when it is missing.
"""

from __future__ import annotations

import argparse
import json
import operator
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from goals import OURS, series_of, standings
from measure import HERE, Series

COLUMNS = (
    # heading, quantity, format, whether its ratio to the reference's is of interest
    ("CPU us/request", "cpu_us", ".2f", True),
    ("requests/s", "requests_per_s", ",.0f", True),
    ("p50 ms", "p50_ms", ".2f", False),
    ("p99 ms", "p99_ms", ".2f", False),
)
PANELS = (
    ("pipelined-16", "16 requests pipelined"),
    ("close", "one request a connection"),
    ("some", "1 in 100 handlers sleeps 20 ms"),
    ("sleep", "every handler sleeps 10 ms"),
)
STRONG, PLAIN, PALE, INK, QUIET = "#c2410c", "#9aa5b1", "#d5dae0", "#1f2933", "#616e7c"
BESIDE = "C epoll", "Go fasthttp"
BY_RATE = {"some", "sleep", "blog-keep-alive", "blog-close", "cpu"}
COST = "cpu_us", "CPU us", "{:.2f}"
RATE = "requests_per_s", "requests/s", "{:,.0f}"
CUT = 5     # bars that are so many times ours are cut


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  " + "  ".join(line).rstrip() for line in padded)


def table(series: Sequence[Series]) -> str:
    """Medians with (lowest-highest), and medians of the ratios to fastserve, or to the first if it is not there."""
    reference = next((one for one in series if one.name == OURS), series[0])
    heading, rows = ["contender"], [[one.name] for one in series]
    for title, quantity, form, with_ratio in COLUMNS:
        heading += [title, f"/ {reference.name}"] if with_ratio else [title]
        for one, row in zip(series, rows, strict=True):
            low, high = min(one.values(quantity)), max(one.values(quantity))
            row.append(f"{one.median(quantity):{form}} ({low:{form}}-{high:{form}})" if high else "-")
            if with_ratio:
                row.append(f"{one.ratio(reference, quantity):.2f}")
    return columns([heading, *rows])


def absent(line: Mapping) -> list[str]:
    """Who is not in the table, or answered with less than the others, in a line each."""
    return [
        *(f"  failed: {name}: {words}" for name, words in line.get("failures", {}).items()),
        *(f"  cannot run here: {name}: {words}" for name, words in line.get("skipped", {}).items()),
        *([f"  left out: {', '.join(line['left_out'])}"] if line.get("left_out") else []),
        *(f"  {name} sends no {', '.join(fields)}" for name, fields in line.get("lacking", {}).items()),
    ]


def case_paper(line: Mapping) -> str:
    series = list(series_of(line).values())
    goal = f" (goal: {line['goal']})" if line["goal"] else ""
    verdict = f"  {line['state']}: {line['figure']}{goal}; load average before the run {_load(line)}"
    return "\n".join([*([table(series)] if series else []), *absent(line), verdict])


def goal_paper(results: Mapping[str, dict]) -> str:
    rows = [[row.words, row.wanted, row.figure, row.state, row.why] for row in standings(results)]
    return columns([["goal", "wanted", "figure", "state", ""], *rows])


def summary(results: Mapping[str, dict]) -> str:
    """The README's table in Markdown, a row a case: requests/s where handlers wait or compute, else CPU a request. Who
    is ahead of us is bold."""
    rows = [["case", "", OURS, *BESIDE, "the best other Python server"], ["---"] * 6]
    for case, line in results.items():
        series = series_of(line)
        if OURS not in series or not line.get("kinds"):
            continue
        quantity, unit, form = RATE if case in BY_RATE else COST
        others = sorted((one for name, one in series.items() if line["kinds"].get(name) == "python"),
                        key=operator.methodcaller("median", quantity), reverse=case in BY_RATE)
        ours = series[OURS].median(quantity)
        shown = [form.format(ours)]
        for one in (*map(series.get, BESIDE), others[0] if others else None):
            figure = form.format(one.median(quantity)) if one else ""
            if one and one.name not in BESIDE:
                figure += f" ({one.name})"
            ahead = one and (one.median(quantity) > ours) == (case in BY_RATE)
            shown.append(f"**{figure}**" if ahead else figure)
        rows.append([line["title"], unit, *shown])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def latest(lines: Iterable[str]) -> dict[str, dict]:
    results: dict[str, dict] = {}
    for line in map(json.loads, lines):
        before = results.get(line["case"])
        if not line["effort"].get("quick") and (before is None or _compared(line) >= _compared(before)):
            results[line["case"]] = line
    return results


def _compared(line: Mapping) -> int:
    """How many took part, well or not."""
    return len(line["rounds"].keys() | line.get("failures", {}).keys())


def draw(results: Mapping[str, dict], folder: Path) -> list[Path]:
    """The charts for which there are results; [] and a word if there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        print("no charts: matplotlib is missing (pip install matplotlib)", file=sys.stderr)
        return []
    matplotlib.use("Agg")
    matplotlib.rcParams.update({
        "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.edgecolor": QUIET,
        "xtick.color": QUIET, "ytick.color": INK, "svg.hashsalt": "fastserve",
    })
    folder.mkdir(exist_ok=True)
    figures = {}
    if "hello-64" in results and series_of(results["hello-64"]):
        figures["cpu"] = _cpu_chart(results["hello-64"])
    panels = [(results[case], title) for case, title in PANELS if case in results and series_of(results[case])]
    if panels:
        figures["throughput"] = _throughput_chart(panels)
    written = []
    for name, figure in figures.items():
        for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 144})):
            written.append(folder / f"{name}.{ending}")
            figure.savefig(written[-1], facecolor="white", **options)
    return written


def _cpu_chart(line: Mapping):
    from matplotlib.figure import Figure

    series = sorted(series_of(line).values(), key=lambda one: one.median("cpu_us"))
    ours = next((one for one in series if one.name == OURS), series[0])
    names = len(series) + len(line["failures"])
    figure = Figure(figsize=(8, 0.8 + 0.28 * names), layout="constrained")
    axes = figure.subplots()
    _bars(axes, series, line["failures"], "cpu_us", "{:.1f}", CUT * ours.median("cpu_us"))
    figure.suptitle("CPU microseconds a request: hello, keep-alive, 64 connections, one core", x=0.01, ha="left",
                    fontsize=12, fontweight="bold")
    figure.supxlabel(_caption(line), x=0.01, ha="left", fontsize=8, color=QUIET)
    return figure


def _throughput_chart(panels: Sequence[tuple[Mapping, str]]):
    from matplotlib.figure import Figure

    tallest = max(len(series_of(line)) + len(line["failures"]) for line, _ in panels)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(12, 0.9 + rows * (0.6 + 0.27 * tallest)), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axes, (line, title) in zip(grid, panels, strict=False):
        series = sorted(series_of(line).values(), key=lambda one: -one.median("requests_per_s"))
        _bars(axes, series, line["failures"], "requests_per_s", "{:,.0f}", None)
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    for axes in grid[len(panels):]:
        axes.set_axis_off()
    figure.suptitle("Requests a second, 64 connections, one core", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.supxlabel(_caption(panels[0][0]), x=0.01, ha="left", fontsize=8, color=QUIET)
    return figure


def _caption(line: Mapping) -> str:
    effort, machine = line["effort"], line["machine"]
    return (f"median of {effort['rounds']} x {effort['seconds']} s, whiskers: lowest and highest; "
            f"{machine['cpu']}, load average before {_load(line)}, CPython {line['versions']['python']}, "
            f"{line['date'][:10]}")


def _load(line: Mapping) -> str:
    return f"{line['machine']['load_average']:.1f}"


def _bars(axes, series: Sequence[Series], failures: Iterable[str], quantity: str, form: str,
          cut: float | None) -> None:
    """One bar each, the best at the top, with its figure; `cut` ends bars that would dwarf the others."""
    highest = max(max(one.values(quantity)) for one in series)
    end = min(cut or highest, highest)
    for place, one in enumerate(series):
        middle, values = one.median(quantity), one.values(quantity)
        strong, whole = one.name == OURS, middle <= end
        axes.barh(place, min(middle, end), height=0.68, color=STRONG if strong else PLAIN if whole else PALE)
        if whole:
            axes.plot([min(values), min(max(values), end)], [place, place], color=INK, linewidth=1.1,
                      solid_capstyle="butt", marker="|", markersize=6)
        axes.text(min(max(values), end) + 0.012 * end, place, form.format(middle) + ("" if whole else ", bar cut"),
                  va="center", fontweight="bold" if strong else "normal", fontsize=9)
    names = [one.name for one in series]
    for name in failures:
        axes.text(0.012 * end, len(names), "fails", va="center", fontsize=9, color=QUIET)
        names.append(name)
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        if label.get_text() == OURS:
            label.set_fontweight("bold")
    axes.set_xlim(0, end * 1.2)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the tables of files of results and draws their charts.")
    parser.add_argument("results", type=Path, nargs="+")
    results = latest(line for path in parser.parse_args().results for line in path.read_text().splitlines())
    for line in results.values():
        print(f"\n{line['case']}: {line.get('title', '')}\n{case_paper(line)}")
    print("\n" + goal_paper(results))
    print("\n" + summary(results))
    for path in draw(results, HERE / "charts"):
        print(path)


if __name__ == "__main__":
    main()
