"""What was measured, as a table and as plots."""

import json
import statistics
from pathlib import Path

Samples = dict[str, dict[str, list[float]]]


def number(value: float) -> str:
    """Three digits or more, with thousands apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values: list[float]) -> str:
    middle = number(statistics.median(values))
    if len(values) == 1 or min(values) == max(values):
        return middle
    return f"**{middle}** ({number(min(values))} to {number(max(values))})"


def table(found: dict[str, Samples], machine: str, rounds: int, seconds: float) -> str:
    """All parts, as Markdown."""
    lines = [
        "# Measured", "",
        f"`bench/run --rounds {rounds}`, {seconds / 60:.0f} minutes. {machine}.", "",
        f"Medians of {rounds} rounds, in turns, with the least and the most in brackets.",
        '"Of the limit" is the median of each round\'s ratio to the fastest stream named "raw ..." that sends the same',
        "frames: the code of tonic and prost themselves, which keeps track of nothing. It sends stored payloads, each",
        "from memory, as ackstream does. It decodes ack after ack, where ackstream batches them before: a ratio may",
        "pass 1.",
    ]  # fmt: skip
    for part, samples in found.items():
        figures = list(dict.fromkeys(figure for values in samples.values() for figure in values))
        ratios = {name: ratio(name, samples) for name in samples}
        with_ratio = any(value is not None for value in ratios.values())
        lines += ["", f"## {part}", "", "| | " + " | ".join(figures) + (" | of the limit |" if with_ratio else " |")]
        lines.append("|---" * (len(figures) + 1 + with_ratio) + "|")
        for name, values in samples.items():
            cells = [spread(values[figure]) if figure in values else "" for figure in figures]
            if with_ratio:
                value = ratios[name]
                cells.append("" if value is None else f"{value:.2f}")
            lines.append(f"| {name.replace('|', ':')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ratio(name: str, samples: Samples) -> float | None:
    """The median of the ratios to the fastest raw stream of the same round and case that sends the same frames."""
    case = name.rpartition(" | ")[0]
    figure = "messages a second"
    if is_raw(name) or figure not in samples[name]:
        return None
    raws = [
        values[figure]
        for other, values in samples.items()
        if other.rpartition(" | ")[0] == case and is_raw(other) and is_traced(other) == is_traced(name)
    ]
    if not raws:
        return None
    limits = [max(speeds) for speeds in zip(*raws, strict=True)]
    ratios: list[float] = [value / limit for value, limit in zip(samples[name][figure], limits, strict=True)]
    return statistics.median(ratios)


def colour(system: str) -> str:
    if "raw" in system:
        return "#999999"
    return "#2a7f62" if system.startswith("ackstream") else "#c9772b"


def is_raw(name: str) -> bool:
    return name.rpartition(" | ")[2].startswith("raw")


def is_traced(name: str) -> bool:
    return "trace" in name


def write(found: dict[str, Samples], text: str, folder: Path) -> None:
    """Writes the table, the plots, and every sample."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text)
    (folder / "samples.json").write_text(json.dumps(found, indent=1) + "\n")
    plot(found, folder)


def plot(found: dict[str, Samples], folder: Path) -> None:
    """Draws what can be drawn of it."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    for part, samples in found.items():
        if part.startswith("throughput"):
            names = list(samples)[::-1]
            middles = [statistics.median(samples[name]["messages a second"]) for name in names]
            figure, axes = plt.subplots(figsize=(8, 0.42 * len(names) + 1.1), layout="constrained")
            bars = axes.barh(names, middles, color=[colour(name) for name in names])
            axes.bar_label(bars, [number(value) for value in middles], padding=4)
            title = part.replace("throughput", "One consumer, each message acked by itself")
            figure.suptitle(f"{title}: messages a second")
            axes.set(xmargin=0.12)
            axes.spines[["top", "right"]].set_visible(False)
            figure.savefig(folder / f"{part.replace(', ', '-').replace(' ', '')}.png", dpi=110)
            plt.close(figure)
    beside = [part for part in ("consumers", "subscriptions", "outstanding") if part in found]
    if beside:
        figure, places = plt.subplots(
            1, len(beside), figsize=(4 * len(beside), 3.4), layout="constrained", sharey=True, squeeze=False
        )
        speeds = [values["messages a second"] for part in beside for values in found[part].values()]
        highest = max(map(statistics.median, speeds)) / 1e6
        for axes, part in zip(places[0], beside, strict=True):
            for system in dict.fromkeys(name.rpartition(" | ")[2] for name in found[part]):
                cases = [name for name in found[part] if name.endswith(f" | {system}")]
                middles = [statistics.median(found[part][name]["messages a second"]) / 1e6 for name in cases]
                places_of = [int(name.split(" | ")[0]) for name in cases]
                style = "--" if system.endswith("threads") else "-"
                axes.plot(places_of, middles, style, marker="o", label=system, color=colour(system))
            axes.set(xscale="log", xlabel=part, ylim=(0, 1.08 * highest))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        places[0][0].set_ylabel("million messages a second")
        places[0][0].legend()
        figure.savefig(folder / "scaling.png", dpi=110)
        plt.close(figure)
    if "the core alone" in found:
        core = found["the core alone"]
        figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
        below = [0.0] * len(core)
        for step, shade in (("accept ns", "#8fbfae"), ("deliver ns", "#4d9f80"), ("ack ns", "#2a7f62")):
            heights = [statistics.median(values[step]) for values in core.values()]
            axes.bar(
                [f"{int(name):,}" for name in core], heights, bottom=below, label=step.removesuffix(" ns"), color=shade
            )
            below = [low + height for low, height in zip(below, heights, strict=True)]
        axes.set(title="The core alone: ns a message", xlabel="messages outstanding")
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / "core.png", dpi=110)
        plt.close(figure)
