"""Draw the cost model of docs/scale.md: seconds of a calibration over the number of nodes, up to 1,000.

The constants were measured with EfficientNet-Lite0 on a machine of two cores (`scripts/bench_scale`, and
single calls of Ray); the bandwidth is assumed. The model is data: change a constant and draw again.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"

NODES = (1, 3, 10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class Constants:
    """The measured constants, in seconds and bytes.

    Attributes:
        start: connecting, starting the actors, importing, opening sessions.
        sample: a sample on one processor.
        pack: packing the statistics of a unit.
        merge: merging eight packed statistics.
        packed: bytes of packed statistics.
        model: bytes of the model.
        bandwidth: bytes a second between two nodes, assumed.
        dispatch: the driver's time to hand out a unit and to take its result.
        wait: the driver's time for each unit under way, each time one is done.
        cores: actors of a node.
        unit: samples of a unit, at most.
    """

    start: float = 16.0
    sample: float = 0.035
    pack: float = 0.018
    merge: float = 0.118
    packed: float = 313e3
    model: float = 19e6
    bandwidth: float = 1e9
    dispatch: float = 0.001
    wait: float = 0.4e-6
    cores: int = 8
    unit: int = 512


MEASURED = Constants()


def parts(samples: int, nodes: int, of: Constants = MEASURED) -> dict[str, float]:
    """Compute the seconds that each part of a calibration takes.

    Counting and the driver's work go on side by side; the other parts do not.

    Args:
        samples: the number of samples.
        nodes: the number of nodes.
        of: the constants.
    """
    size = min(max(samples // 32, 8), of.unit)
    units, actors = math.ceil(samples / size), nodes * of.cores
    rounds = math.ceil(units / actors)
    levels = math.ceil(math.log(max(units, 2), 8))
    return {
        "start": of.start,
        "send the model": of.model / of.bandwidth * math.log2(nodes + 1),
        "count": rounds * (size * of.sample + of.pack),
        "driver": units * (9 / 8 * of.dispatch + of.wait * min(2 * actors, units)),
        "last merges": levels * (of.merge + 8 * of.packed / of.bandwidth),
    }


def seconds(found: dict[str, float]) -> float:
    """Compute the time of the whole calibration."""
    beside = max(found["count"], found["driver"])
    return found["start"] + found["send the model"] + beside + found["last merges"]


def draw(path: Path) -> None:
    """Draw the time of 100 thousand and 10 million samples over the number of nodes."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "onnxq"
    figure, axes = plt.subplots(figsize=(7.2, 3.6), layout="constrained")
    for samples, color in ((10**7, "tab:blue"), (10**5, "tab:orange")):
        found = [parts(samples, nodes) for nodes in NODES]
        axes.loglog(NODES, [seconds(one) for one in found], "o-", color=color, label=f"{samples:,} samples")
        axes.loglog(NODES, [one["driver"] for one in found], ":", color=color, label="its driver alone")
    axes.axhline(MEASURED.start, color="gray", linewidth=0.8, label="start-up")
    axes.set(xlabel=f"nodes of {MEASURED.cores} processors", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Draw the picture and print the figures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    draw(folder / "scale.svg")
    for samples in (10**5, 10**7):
        print(f"{samples:,} samples: nodes, seconds, of them counting, driver's own work")
        for nodes in NODES:
            found = parts(samples, nodes)
            print(f"  {nodes:5} {seconds(found):10.0f} {found['count']:10.0f} {found['driver']:8.1f}")


if __name__ == "__main__":
    main()
