"""Plots the loss curve."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def draw_curve(losses: list[dict[str, float]], path: Path, window: int = 20) -> None:
    """Plot each logged loss as a dot, and their running mean as a line.

    Args:
        losses: the Trainer's log: entries with "step", "loss" and "learning_rate".
        window: number of entries of the running mean.
    """
    if not losses:
        return
    steps, values = [entry["step"] for entry in losses], [entry["loss"] for entry in losses]
    means = [
        sum(values[max(0, at - window) : at + 1]) / len(values[max(0, at - window) : at + 1])
        for at in range(len(values))
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, values, ".", markersize=2, alpha=0.4, label="logged")
    axes.plot(steps, means, label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
