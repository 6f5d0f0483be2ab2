"""The whole system on one machine, and what it shares with the cluster: where things are in this checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "vaccination"
