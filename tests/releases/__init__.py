"""What was released, kept so that tests can run it beside the present code, and go from one to the other and back.

A release is one file, VERSION.tar.xz: what its image had of our own in it, and its chart. The packages beside it are
those of the present image, so a release can be run for as long as its requirements are still met.
"""

import tarfile
from pathlib import Path

FOLDER = Path(__file__).parent


def extract(version: str, folder: Path) -> Path:
    """Unpacks a release into `folder`, which is made, and returns it.

    With the folder as PYTHONPATH, and as the working directory or with `-P`, `python -m services.X` is the released
    service; `folder / "helm" / "vaccination"` is the released chart. FileNotFoundError: no such release is kept.
    """
    with tarfile.open(FOLDER / f"{version}.tar.xz") as release:
        release.extractall(folder, filter="data")
    return folder
