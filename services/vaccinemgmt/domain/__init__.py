"""Lots, doses and who gets them, in the pharmacist's words; see docs/architecture/glossary.md."""

from .errors import *  # noqa: F403
from .exchange import *  # noqa: F403
from .lot import *  # noqa: F403
from .receipt import *  # noqa: F403
from .vaccination import *  # noqa: F403
