"""The figures of a benchmark as bars, one chart per table: median seconds and quartiles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROW, TITLE = 0.26, 0.75  # inches


def draw(figures: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Write the bars to `path`, in the format of its suffix (.svg, .png)."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "samenet"  # equal figures give equal files
    from matplotlib import pyplot

    tables = {
        # sgemm is other work and only shows the machine's rate
        title: {n: v["seconds"] for n, v in table.items() if "seconds" in v and n != "sgemm"}
        for title, table in figures.items()
    }
    heights = [TITLE + ROW * len(table) for table in tables.values()]
    figure, axes = pyplot.subplots(
        len(tables), figsize=(8, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (title, table) in zip(axes[:, 0], tables.items(), strict=True):
        scale, unit = (1, "s") if max(seconds["median"] for seconds in table.values()) >= 1 else (1e3, "ms")
        medians = [scale * seconds["median"] for seconds in table.values()]
        whiskers = [
            [scale * max(0, s["median"] - s["quartile_1"]) for s in table.values()],
            [scale * max(0, s["quartile_3"] - s["median"]) for s in table.values()],
        ]
        colours = ["#888888" if is_other(name) else "#2a6fdb" for name in table]
        bars = axis.barh(list(table), medians, xerr=whiskers, color=colours, ecolor="#222222", height=0.7)
        axis.bar_label(bars, [f" {median:.3g} {unit}" for median in medians], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=10, loc="left")
        axis.margins(x=0.15)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=110)


def is_other(name: str) -> bool:
    """Whether a bar belongs to another project."""
    return name.startswith(("timm", "pytorchcv", "stock", "ONNX", "OpenVINO", "usual", "cp"))
