"""The system on one machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.machine.mesh import Mesh as Mesh
    from mesh.machine.mesh import Report as Report


def __getattr__(name: str) -> object:
    # The pods of stores use this package too, and lack packages that Mesh needs: so it is imported on demand.
    if name in ("Mesh", "Report"):
        from mesh.machine import mesh

        return getattr(mesh, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
