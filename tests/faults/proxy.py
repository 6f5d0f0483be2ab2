"""A TCP proxy between a service and its store, to cut and to slow the line."""

import asyncio
import contextlib


class Proxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`. Faults apply to bytes on their way, at once."""

    def __init__(self, port: int, target: int) -> None:
        self._port, self._target = port, target
        self._delay = 0.0
        self._refusing = False
        self._lines: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def stop(self) -> None:
        """Cuts every line and stops listening."""
        self.cut()
        if self._server is not None:
            self._server.close()

    def cut(self) -> None:
        """Resets every line there is; new ones may be opened."""
        for line in list(self._lines):
            line.transport.abort()

    def refuse(self, refusing: bool) -> None:
        """Cuts, and keeps new lines from being opened, or lets them again."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def slow(self, seconds: float) -> None:
        """Delays every chunk in both directions; 0 heals."""
        self._delay = seconds

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._lines |= {writer, far_writer}
        try:
            _, going = await asyncio.wait(
                [asyncio.create_task(self._pump(*way)) for way in ((reader, far_writer), (far_reader, writer))],
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in going:
                task.cancel()
        finally:
            self._lines -= {writer, far_writer}
            for line in (writer, far_writer):
                line.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if self._delay:
                    await asyncio.sleep(self._delay)
                writer.write(chunk)
                await writer.drain()
