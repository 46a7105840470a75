"""
OpenFlow 1.5 with a bridge of this node, over its management socket.

For br-ext, which has no controller. One session a call: calls are rare (after a start of
ovs-vswitchd, when an address changes).
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from dunlin.openflow import codec
from dunlin.openflow.flow import Flow
from dunlin.openflow.messages import (
    BarrierReply,
    EchoRequest,
    ErrorMessage,
    FlowDump,
    Message,
    OpenFlowError,
)

TIMEOUT_SECONDS: Final = 10.0
_BARRIER_XID: Final = 0xD1
_COOKIE_MASK: Final = 0xFFFFFFFFFFFFFFFF
_BUNDLE: Final = 1


class LocalSwitchError(Exception):
    """The bridge could not be reached, or refused something; names bridge and reason."""


async def replace_flows(rundir: Path, bridge: str, cookie: int, flows: Sequence[Flow]) -> None:
    """
    Make `flows` all the flows of that cookie, in one atomic bundle.

    Raises:
        LocalSwitchError: then the bridge is as it was.
    """
    messages = [codec.encode_flow_delete(cookie, _COOKIE_MASK)]
    messages += [codec.encode_flow(flow, "add") for flow in flows]
    bundle = b"".join(
        (
            codec.encode_bundle_open(_BUNDLE, 1),
            *(codec.encode_bundle_add(_BUNDLE, message, 2) for message in messages),
            codec.encode_bundle_commit(_BUNDLE, 3),
        )
    )
    async with _session(rundir, bridge) as ask:
        await ask(bundle)


async def dump_flows(rundir: Path, bridge: str, table: int) -> tuple[Flow, ...]:
    """
    The flows of one table.

    Raises:
        LocalSwitchError: no answer.
    """
    async with _session(rundir, bridge) as ask:
        answers = await ask(codec.encode_flow_dump_request(1, table=table))
    dumps = (answer for answer in answers if isinstance(answer, FlowDump))
    return tuple(entry.flow for dump in dumps for entry in dump.entries)


async def flush_connections(rundir: Path, bridge: str, flushes: Sequence[codec.CtFlush]) -> None:
    """
    End these connections (NXT_CT_FLUSH, Open vSwitch 3.1 and later); those that are gone are.

    Raises:
        LocalSwitchError: not all of them.
    """
    async with _session(rundir, bridge) as ask:
        await ask(b"".join(map(codec.encode_ct_flush, flushes)))


class _Session:
    """A connection that asks and reads until its barrier."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __call__(self, request: bytes) -> list[Message]:
        """Send, and everything that came until the barrier's reply; an error among it is raised."""
        self._writer.write(request + codec.encode_barrier_request(_BARRIER_XID))
        answers: list[Message] = []
        while True:
            answer = await self._receive()
            if isinstance(answer, BarrierReply) and answer.xid == _BARRIER_XID:
                return answers
            if isinstance(answer, ErrorMessage):
                raise OpenFlowError(str(answer))
            if isinstance(answer, EchoRequest):
                self._writer.write(codec.encode_echo_reply(answer.xid, answer.payload))
            answers.append(answer)

    async def _receive(self) -> Message:
        head = await self._reader.readexactly(codec.HEADER_LEN)
        length = codec.parse_header(head).length
        return codec.decode(head + await self._reader.readexactly(length - len(head)))


@asynccontextmanager
async def _session(rundir: Path, bridge: str) -> AsyncIterator[_Session]:
    """A session past its hello, all failures under one name."""
    writer = None
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_unix_connection(rundir / f"{bridge}.mgmt")
            writer.write(codec.encode_hello(0))
            yield _Session(reader, writer)
    except (OSError, TimeoutError, EOFError, OpenFlowError) as error:
        raise LocalSwitchError(f"{bridge}: {error or type(error).__name__}") from error
    finally:
        if writer is not None:
            writer.close()
