"""Reads the files of a directory, row by row, as their publishers wrote them.

*.ndjson holds FHIR resources, one a line, and *.csv deliveries under a header; whether a file's ending is in capitals
does not matter. Only files are read: a pipe, for example, would be waited for without end. What else is there is named.

Text is UTF-8, or UTF-16 as its first bytes tell. A line that is not UTF-8 is read as CP949, in which Korean Windows
writes, if it can be. A CSV file's columns are parted by commas, semicolons or tabs, as its header tells, or a line
`sep=;` before it. All that is not as the format wants it is noted, and a row that cannot be read is refused; the rows
beside it are kept.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from mesh.data.dataset import Data, Invalid, Row, show

COLUMNS = ("hospital", "cvx", "mvx", "lot_number", "manufactured", "expires", "quantity")
DELIVERY_ID = "delivery_id"  # a column that may be there
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
TELLS_DELIMITER = re.compile('"?sep=([,;\t])"?', re.IGNORECASE)  # a first line for Excel, which hides it
CONTROL = re.compile("[\x00-\x1f]")

Resource = dict[str, Any]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a directory by what they hold, and the names of what is not read."""

    resources: list[Path]
    stock: list[Path]
    others: list[str]

    @classmethod
    def of(cls, directory: Path) -> "Folder":
        """Looks into the directory, not into those in it."""
        entries = sorted(directory.iterdir())
        resources, stock = (
            [path for path in entries if path.suffix.lower() == end and path.is_file()] for end in (".ndjson", ".csv")
        )
        others = {*entries} - {*resources, *stock}
        return cls(resources, stock, sorted(printable(path.name) + "/" * path.is_dir() for path in others))

    def size(self) -> int:
        """Bytes to read: resources are read twice."""
        return sum(2 * path.stat().st_size for path in self.resources) + sum(path.stat().st_size for path in self.stock)


class Reader:
    """Reads files; what is wrong with them goes to `data`, and `advance` is called with the number of bytes read."""

    def __init__(self, data: Data, advance: Advance) -> None:
        self.data, self.advance = data, advance

    def resources(self, path: Path) -> Iterator[tuple[Row, Resource]]:
        """The FHIR resources of a *.ndjson file."""
        for at, (row, text) in enumerate(self._lines(path)):
            if at == 0 and (text[0] == "[" or text.strip() == "{"):
                reason = "is JSON that is not written one resource a line (NDJSON): the file is left out"
                self.data.refuse(row, Invalid("file", reason))
                return
            try:
                resource = self._json(row, text)
                if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
                    raise Invalid("resourceType", "is missing")
            except Invalid as error:
                self.data.refuse(row, error)
            else:
                yield row, resource

    def deliveries(self, path: Path) -> Iterator[tuple[Row, dict[str, str]]]:
        """The lines of a *.csv file below its header, by the names of the columns in small letters."""
        header: list[str] = []
        told = delimiter = ""
        for row, text in self._lines(path):
            if row.line == 1 and (first := TELLS_DELIMITER.fullmatch(text)):
                told = first[1]
                continue
            if not header:
                delimiter = told or max(DELIMITERS, key=text.count)
            try:
                cells = _cells(text, delimiter)
                if not any(cells):  # as spreadsheets write a row that was emptied
                    continue
                if header:
                    yield row, _values(header, cells)
                    continue
            except Invalid as error:
                self.data.refuse(row, error)
                continue
            header = [name.lower() for name in cells]
            if missing := [name for name in COLUMNS if name not in header]:
                reason = f"lacks {', '.join(missing)}: the file is left out"
                self.data.refuse(row, Invalid("header", reason))
                return
            if delimiter != ",":
                self.data.note(row, "header", f"columns are parted by {DELIMITERS[delimiter]}, not by commas")
            for name, times in Counter(header).items():
                if times > 1 and name in (*COLUMNS, DELIVERY_ID):
                    self.data.note(row, "header", f"{name} is there twice: rows are taken in which both say the same")

    def _lines(self, path: Path) -> Iterator[tuple[Row, str]]:
        """The lines that are not blank. Any of them may begin with a BOM, if the file was joined from several."""
        name = printable(path.name)
        try:
            with path.open("rb") as file:
                for number, (text, refused) in enumerate(self._decoded(path, file), 1):
                    row = Row(name, number)
                    if refused:
                        self.data.refuse(row, refused)
                    elif (line := text.removeprefix("\ufeff").rstrip("\r\n")).strip():
                        yield row, line
        except OSError as error:
            self.data.refuse(Row(name, 0), Invalid("file", error.strerror or str(error)))

    def _decoded(self, path: Path, file: BinaryIO) -> Iterator[tuple[str, Invalid | None]]:
        head = file.read(4)
        file.seek(0)
        if encoding := _utf_16(head):
            self.data.note(Row(printable(path.name), 1), "file", "is UTF-16, not UTF-8, and read as such")
            content = file.read()
            self.advance(len(content))
            try:
                yield from ((line, None) for line in content.decode(encoding).split("\n"))
            except UnicodeDecodeError:
                yield "", Invalid("file", "begins like UTF-16, and is not: the file is left out")
            return
        for number, raw in enumerate(file, 1):
            self.advance(len(raw))
            try:
                yield raw.decode(), None
                continue
            except UnicodeDecodeError:
                pass
            try:
                text = raw.decode("cp949")
            except UnicodeDecodeError:
                yield "", Invalid("line", "is neither UTF-8 nor CP949")
            else:
                self.data.note(
                    Row(printable(path.name), number), "line", "is not UTF-8, and read as CP949 (Korean Windows)"
                )
                yield text, None

    def _json(self, row: Row, text: str) -> object:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            try:
                value = json.loads(CONTROL.sub(" ", text))
            except (ValueError, RecursionError):
                raise Invalid("line", f"is not JSON: {getattr(error, 'msg', error)}") from None
        self.data.note(row, "line", "has control characters inside a text; each is read as a space")
        return value


def printable(path: str | Path) -> str:
    """A path as text that can be encoded: bytes in it that are not UTF-8, as of an old archive, are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _utf_16(head: bytes) -> str | None:
    """The encoding of a file that begins so, if it is UTF-16: by its BOM, or since every other byte is 0."""
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    if len(head) == 4 and head.count(0) == 2:
        return "utf-16-le" if head[1] == head[3] == 0 else "utf-16-be"
    return None


def _cells(text: str, delimiter: str) -> list[str]:
    try:  # each line by itself, so that a quote that is not closed does not swallow the next rows
        return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        raise Invalid("line", f"is not CSV: {error}") from None


def _values(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) > len(header):
        raise Invalid("line", f"has {len(cells)} columns where the header has {len(header)}")
    values = dict[str, str]()
    for name, cell in zip(header, cells, strict=False):
        if name in (*COLUMNS, DELIVERY_ID) and values.get(name, cell) != cell:
            raise Invalid(name, f"is there twice, as {show(values[name])} and as {show(cell)}")
        values[name] = cell
    return values
