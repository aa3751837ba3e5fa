"""`python -m experiments.results`: redraw the tables and plots of docs/results.md from the CSV files in docs/results.

The text of the page stays. A table stands between the lines `<!-- NAME -->` and `<!-- end -->`, and is replaced;
`NAME` is a key of `experiments.studies.page.TABLES`.
"""

if __name__ == "__main__" and not __package__:
    raise SystemExit("error: write python -m experiments.results")


import argparse
import sys
from pathlib import Path

from .studies import page


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder with results.md and results/ (docs)")
    folder = parser.parse_args().docs
    try:
        for path in page.redraw(folder):
            print(f"Drawn: {path}")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
