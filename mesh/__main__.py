"""The command line: `python -m mesh COMMAND`, or `./dev COMMAND`, which makes the environment first."""

import argparse
import math
import os
import sys
import traceback
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.machine.home import DEFAULT_HOME, MAX_REPLICAS, STORES, Home
from mesh.machine.processes import MeshError

if TYPE_CHECKING:
    from mesh.machine import Mesh


def _arguments() -> argparse.ArgumentParser:
    # These options may stand before or after the command. Without SUPPRESS the default of the command's parser would
    # replace a value that was given before it.
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--home", type=Path, help="the folder with everything in it (MESH_HOME, else .mesh)")
    common.add_argument("--base-port", type=int, help="all ports are this and above (18080, or as last time)")
    parser = argparse.ArgumentParser("mesh", description="The whole system on this machine.", parents=[common])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, about: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=about, description=about, parents=[common])

    up = command("up", "start what is not running, and wait until all is ready")
    up.add_argument(
        "--replicas",
        type=int,
        choices=range(1, MAX_REPLICAS + 1),
        help="processes of each service (1, or as last time)",
    )
    up.add_argument(
        "--replicated",
        action="store_true",
        default=None,
        help="stores that survive the death of a server: two of Postgres, three each of MongoDB and NATS; a new home's",
    )
    for store in STORES:
        up.add_argument(f"--{store}-url", help=f"superuser's URL of a {store} server that is there already")
    command("down", "stop everything that up has started")
    command("status", "what runs; exit code 0 only if all is ready")
    logs = command("logs", "the last lines of a component's log; `access` is the gateway's access log")
    logs.add_argument("name", help="a component, see status; or access")
    logs.add_argument("-f", "--follow", action="store_true")
    for verb in ("start", "stop"):
        command(verb, f"{verb} one component").add_argument("name", help="see status")
    token = command("token", "a JWT for calls to the gateway")
    who = token.add_mutually_exclusive_group(required=True)
    who.add_argument("--customer", metavar="ID", help="the customer with this id")
    who.add_argument("--role", choices=["manager", "operator"])
    token.add_argument("--hospital", metavar="ID", help="the one that the manager manages")
    token.add_argument("--expires-in", type=seconds, default=3600, metavar="SECONDS")
    command("jwks", "the public keys of the local issuer, for a chart's auth.jwks")
    rebuild = command("rebuild", "replay all events into a new view, beside the one that is read")
    rebuild.add_argument("view", choices=["mypage"])
    proof = command("books", "add up places and doses from the stores and from the events, and name every difference")
    proof.add_argument("service", nargs="*", metavar="SERVICE", help="approval, vaccinemgmt; both when none is named")
    load = command("import", "import hospitals, capacity and lots from a directory")
    load.epilog = (
        "Exit code 0: all was taken, perhaps with notes; 1: something was refused; 2: nothing is in, or it stopped."
    )
    load.add_argument("directory", type=Path)
    load.add_argument(
        "--time-zone", action="append", default=[], metavar="[STATE=]NAME",
        help="IANA name, of hospitals whose files tell none, or of those in a state; may be repeated",
    )  # fmt: skip
    load.add_argument(
        "--close-gone-days", action="store_true", help="take no new bookings for days that left the files"
    )
    load.add_argument("--shift-to", type=date.fromisoformat, metavar="DATE", help="move the first day to this one")
    demo = command("demo", "start, import, and show the whole journey")
    demo.add_argument("--stop", action="store_true", help="stop the mesh at the end")
    return parser


def seconds(text: str) -> float:
    """The type of an option; an error of argparse names it."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return number


def _token(arguments: argparse.Namespace, home: Path, made: bool) -> None:
    from mesh.machine import identity  # and nothing more: shell scripts call this command in loops

    if not (made or identity.has_key(home)):  # the first key is made on demand
        raise MeshError(f"there is no mesh in {home}, so no gateway would know this token: up makes one, jwks a key")
    role = arguments.role or "customer"
    if (role == "manager") != bool(arguments.hospital):
        sys.exit("--role manager needs --hospital ID, and nothing else does")
    subject = arguments.customer or "-".join(filter(None, [role, arguments.hospital]))
    signed = identity.token(
        home, subject=subject, roles=[role], hospital=arguments.hospital, expires_in=arguments.expires_in
    )
    sys.stdout.write(f"{signed}\n")


def _show_status(mesh: "Mesh") -> int:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "pid", "port", "state", "uptime", box=None)
    colour = {"ready": "green", "live": "yellow", "down": "red"}
    states = mesh.status()
    for s in states:
        uptime = "" if s.uptime is None else f"{s.uptime:.0f} s"
        table.add_row(s.name, str(s.pid or "-"), str(s.port), f"[{colour[s.state]}]{s.state}[/]", uptime)
    Console().print(table)
    return 0 if all(s.state == "ready" for s in states) else 1


def main() -> int:
    """Returns the exit code."""
    arguments = _arguments().parse_args()
    home: Path = getattr(arguments, "home", Path(os.environ.get("MESH_HOME", DEFAULT_HOME)))
    try:
        return _run(arguments, home)
    except MeshError as error:
        sys.stderr.write(f"error: {error}\n")
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and Path(os.fsdecode(error.filename or "")).is_relative_to(home.resolve()):
            sys.stderr.write(f"error: {error.filename}: {error.strerror}; --home takes another folder\n")
        else:
            traceback.print_exc()
    return 2 if arguments.command == "import" else 1  # an import's 1 means that all but the refused rows is in


def _run(arguments: argparse.Namespace, home: Path) -> int:
    made = Home(home, getattr(arguments, "base_port", None)).is_made
    if arguments.command == "token":
        _token(arguments, home, made)
        return 0
    if arguments.command == "jwks":
        from mesh.machine import identity

        sys.stdout.write(f"{identity.jwks(home)}\n")
        return 0
    if not made and arguments.command not in ("up", "start", "demo"):
        if arguments.command == "down":  # so there is nothing to stop, as was wanted
            sys.stderr.write(f"there is no mesh in {home}\n")
            return 0
        raise MeshError(f"there is no mesh in {home}: up makes one")

    from rich.console import Console
    from rich.markup import escape

    from mesh.machine import Mesh

    console = Console(highlight=False)
    external = {s: url for s in STORES if (url := getattr(arguments, f"{s}_url", None))}
    mesh = Mesh(
        home,
        getattr(arguments, "base_port", None),
        external,
        getattr(arguments, "replicas", None),
        replicated=getattr(arguments, "replicated", None),
    )

    def report(name: str, what: str) -> None:
        console.print(f"  [bold]{name:<12}[/] {escape(what)}")

    match arguments.command:
        case "up":
            with console.status("starting the mesh"):
                mesh.up(report=report)
            console.print(mesh.how_to_call(), soft_wrap=True)
        case "down":
            mesh.down(report)
        case "status":
            return _show_status(mesh)
        case "logs":
            follow = ["-F"] if arguments.follow else []
            os.execvp("tail", ["tail", "-n", "100", *follow, str(mesh.log(arguments.name))])  # noqa: S606
        case "start":
            mesh.start(arguments.name, report)
        case "stop":
            report(arguments.name, "stopped" if mesh.stop(arguments.name) else "was not running")
        case "rebuild":
            mesh.rebuild_mypage(report)
        case "books":
            return 0 if mesh.check_books(arguments.service or ["approval", "vaccinemgmt"], report) else 1
        case "import":
            from mesh.data import importer
            from mesh.machine import identity

            operator = identity.token(home, subject="operator", roles=["operator"], expires_in=24 * 3600)
            return importer.run(
                arguments.directory, mesh.connect_aio, operator, arguments.shift_to, arguments.time_zone,
                close_gone_days=arguments.close_gone_days,
            )  # fmt: skip
        case "demo":
            from mesh.data import demo

            return demo.run(mesh, console, report, stop=arguments.stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
