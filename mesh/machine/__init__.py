"""The system on one machine."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mesh.machine.mesh import Mesh as Mesh
    from mesh.machine.mesh import Report as Report


def __getattr__(name: str) -> object:
    # Mesh needs Helm's and Envoy's part of the environment. The pods of stores have no such thing and use this package
    # too, so it is imported when somebody asks for it.
    if name in ("Mesh", "Report"):
        from mesh.machine import mesh

        return getattr(mesh, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
