"""What was released, kept so that tests can run it beside the present code, and go from one to the other and back.

A release is one file, VERSION.tar.xz: what its image had of our own in it, and its chart. The packages beside it are
those of the present image, so a release can be run for as long as its requirements are still met.
"""

import importlib.util
import sys
import tarfile
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


def extract(version: str, folder: Path) -> Path:
    """Unpacks a release into `folder`, which is made, and returns it.

    With the folder as PYTHONPATH, and as the working directory or with `-P`, `python -m services.X` is the released
    service; `folder / "helm" / "vaccination"` is the released chart. FileNotFoundError: no such release is kept.
    """
    with tarfile.open(FOLDER / f"{version}.tar.xz") as release:
        unpack(release, folder)
    return folder


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpacks an archive without taking owners and rights over, where Python can do so: Debian 12's 3.11.2 cannot."""
    if hasattr(tarfile, "data_filter"):
        archive.extraction_filter = tarfile.data_filter
    archive.extractall(folder)


def service(version: str, name: str, folder: Path) -> ModuleType:
    """A released service's package under a name of its own, to run in this process beside the present one.

    It stands on the present chassis and contracts. `folder` is where the release is, or is to be, unpacked.
    """
    if not folder.exists():
        extract(version, folder)
    package = f"released_{name}_{version.replace('.', '_')}"
    if package not in sys.modules:
        root = folder / "services" / name
        spec = importlib.util.spec_from_file_location(
            package, root / "__init__.py", submodule_search_locations=[str(root)]
        )
        assert spec
        assert spec.loader
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    return sys.modules[package]
