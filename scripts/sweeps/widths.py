"""The same from Python: how the loss falls with the width, then the dataset, all in one file.

Run it with: python scripts/sweeps/widths.py runs/widths
"""

import sys
from pathlib import Path

import jaxsym as js
from jaxsym import report

js.use_all_cores()


def main(out):
    """Run the sweep, or go on with it, print the median loss of every cell, and make the page."""
    outcome = js.sweep.run(
        {
            "sweep": {"target": f"{Path(__file__).resolve().parent / 'networks.py'}:titanic", "seeds": 64},
            "static": {"width": [1, 2, 4, 8, 16]},
            "traced": {"learning_rate": [0.01, 0.1]},
            "page": {"metric": "loss", "direction": "minimize"},
        },
        out,
    )
    print(f"{outcome.done} of {outcome.cells} cells, {outcome.networks} networks, {len(outcome.failures)} failed")
    results = js.sweep.open(out)
    print(results["loss"].isel(step=-1).load().median("seed").to_series().unstack().round(4))
    print(f"wrote {report.publish(Path(out))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/widths")
