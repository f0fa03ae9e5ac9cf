"""A server that dies once and for all: found well by a probe, it would go on with what it cut off."""

from __future__ import annotations

import asyncio

from tests.client.calls import Call
from tests.client.stub import Stub


class OneLife(Stub):
    """Does not listen any more once it has cut an answer."""

    async def _complete(self, call: Call, writer: asyncio.StreamWriter) -> bool:
        if not (whole := await super()._complete(call, writer)):
            await self.kill()
        return whole
