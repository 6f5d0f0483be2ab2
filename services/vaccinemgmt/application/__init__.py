"""Vaccine management's use cases, and the port to its store."""

from .accesses import *  # noqa: F403
from .counter import *  # noqa: F403
from .doses import *  # noqa: F403
from .ports import *  # noqa: F403
from .recalls import *  # noqa: F403
from .serving import *  # noqa: F403
from .stockroom import *  # noqa: F403
