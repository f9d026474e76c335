"""Every reference by every exporter, half precision and static: compiled as exported and fused: docs/landing-table.md.

    python -m models landing -o DIR [--readme docs/landing-table.md] [--names vit_b_16,swin_t] [--sm 89] …

DIR keeps one JSON a cell and landing.md; a cell whose JSON is there is not run again. With `--readme` the table goes
between the lines `<!-- landing -->` and `<!-- /landing -->` of that file. The exit code is 3 if fusing made any cell
worse (more kernels, more bytes moved by as many, fewer sites landed), or if a stage other than torch's own export failed.
"""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from models.cell import Cell
from models.landing import is_broken, landing_table, with_table, worse
from models.matrix import cells, common, run_cells
from models.table import stopped


def parser() -> argparse.ArgumentParser:
    """The options of `python -m models landing`."""
    top = common("landing", __doc__)
    top.add_argument("--readme", type=Path, metavar="FILE", help="put the table between the two marks of this file")
    top.add_argument("--sm", type=int, default=89, help="compute capability times ten; default: 89")
    top.set_defaults(half=True, land=True, dynamic="static", target_version=None)
    return top


def main(arguments: list[str]) -> int:
    """Run what is missing, print and write the table; 1 if the document cannot take it, 3 if a cell is worse."""
    options = parser().parse_args(arguments)
    if options.readme is not None:
        try:
            with_table(options.readme.read_text(encoding="utf-8"), "")  # before hours of work
        except (OSError, ValueError) as error:
            print(f"{options.readme}: {error}", file=sys.stderr)
            return 1
    notes = run_cells(cells(options), options)
    table = landing_table(notes, datetime.now(UTC).date().isoformat())
    (options.output / "landing.md").write_text(table, encoding="utf-8")
    print(table)
    if options.readme is not None:
        document = with_table(options.readme.read_text(encoding="utf-8"), table)
        options.readme.write_text(document, encoding="utf-8")
    broken = [note for note in notes if is_broken(note)]
    for note in broken:
        print(f"{Cell(**note['cell']).key}: {'; '.join(worse(note) or stopped(note))}", file=sys.stderr)
    return 3 if broken else 0
