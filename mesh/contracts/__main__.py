"""`python -m mesh.contracts` generates the contracts' code, and with `--chart` the chart's files, see generation."""

import sys

from mesh import CHART
from mesh.contracts.generation import chart_files, generate

generate()
if "--chart" in sys.argv:
    for name, content in chart_files().items():
        (CHART / name).write_bytes(content)
