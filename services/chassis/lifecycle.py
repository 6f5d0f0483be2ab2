"""That the process is about to stop, for everybody who has something that lasts."""

import asyncio

draining = asyncio.Event()
"""Set when the process begins to stop: endless streams end, so that their clients go to another replica."""
