"""Decides what the lines of a *.csv file mean: deliveries of lots.

A line is a delivery, and deliveries of one lot add up. Its id is in the column `delivery_id`, for example the number of
the delivery note. Without one it is made of the file's name, the line's content, and how many equal lines come before
it in the file: the same file imported again is the same deliveries, and an equal line in another file is another
delivery.
"""

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from datetime import date
from uuid import uuid5

from mesh.data.dataset import NAMESPACE, Data, Invalid, Lot, Row, hospital_id, show, text_of, whole
from mesh.data.files import COLUMNS, DELIVERY_ID
from services.approval.domain import canonical_code


class Stock:
    """Takes deliveries from any number of files."""

    def __init__(self, data: Data) -> None:
        self.data = data
        self.dates: dict[Hashable, Hashable] = {}  # by lot
        self.noted: dict[Hashable, int] = {}  # doses of the deliveries that have an id

    def take(self, deliveries: Iterable[tuple[Row, dict[str, str]]]) -> None:
        """Takes the deliveries of one file."""
        equal = Counter[Hashable]()  # lines of this file, by content
        for row, values in deliveries:
            try:
                self._take(row, values, equal)
            except Invalid as error:
                self.data.refuse(row, error)

    def _take(self, row: Row, values: dict[str, str], equal: Counter[Hashable]) -> None:
        hospital, cvx, told, number = (text_of(values, name) for name in COLUMNS[:4])
        if (mvx := told.upper()) != told:
            self.data.note(row, "mvx", "is in small letters, and read as in capitals")
        dates = _day(values, "manufactured"), _day(values, "expires")
        quantity = text_of(values, "quantity")
        doses = whole("quantity", int(quantity) if re.fullmatch("-?[0-9]{1,9}", quantity) else quantity, 1)
        of_lot = hospital, canonical_code(cvx), mvx, number
        if self.dates.setdefault(of_lot, dates) != dates:
            raise Invalid("lot_number", "this lot came before with other dates, which are kept")
        delivery_id = values.get(DELIVERY_ID, "")
        if not delivery_id:
            content = (*of_lot, *map(str, dates), str(doses))
            equal[content] += 1
            delivery_id = str(uuid5(NAMESPACE, "\n".join((row.file, *content, str(equal[content])))))
        elif (before := self.noted.get((*of_lot, delivery_id))) is None:
            self.noted[*of_lot, delivery_id] = doses
        elif before != doses:
            raise Invalid(DELIVERY_ID, "this delivery came before with another content, which is kept")
        else:
            self.data.ignored["repeated delivery"] += 1
            return
        self.data.lots[hospital_id(hospital)].append(Lot(row, cvx, mvx, number, *dates, doses, delivery_id))


def _day(values: dict[str, str], name: str) -> date:
    text = text_of(values, name)
    try:
        if re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", text):  # fromisoformat accepts weeks too
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise Invalid(name, f"{show(text)} is not a day written YYYY-MM-DD")
