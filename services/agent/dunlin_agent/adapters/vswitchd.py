"""
ovs-vswitchd's control socket: what ovs-appctl does, without a process; and whether it lives.

Source: ovs-appctl(8); JSON-RPC 1.0 over a unix socket, `{"method", "params", "id"}`.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, Final

from dunlin.model.addresses import IPAddress, MacAddress

PIDFILE: Final = "ovs-vswitchd.pid"
TIMEOUT_SECONDS: Final = 5.0
RECONNECT_SECONDS: Final = 0.1


class VswitchdError(Exception):
    """ovs-vswitchd is not there, or refused a command; the message has its words."""


class Vswitchd:
    """The ovs-vswitchd whose run directory is `rundir`, whichever process that is now."""

    def __init__(self, rundir: Path) -> None:
        """Nothing is opened."""
        self._rundir = rundir

    def incarnation(self) -> str:
        """
        A text that is another one after each start of ovs-vswitchd.

        Raises:
            VswitchdError: there is no pid file.
        """
        path = self._rundir / PIDFILE
        try:
            return f"{int(path.read_text())}-{path.stat().st_mtime_ns}"
        except (OSError, ValueError) as error:
            raise VswitchdError(f"{path}: {error}") from error

    def last_incarnation(self) -> str:
        """As `incarnation`, also of a process that has ended; "" when it left no pid file."""
        try:
            return self.incarnation()
        except VswitchdError:
            return ""

    async def call(self, command: str, *arguments: str) -> str:
        """
        Run one ovs-appctl command and return its output.

        Raises:
            VswitchdError: not reachable, refused, or no answer within TIMEOUT_SECONDS.
        """
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await self._connect()
                try:
                    request = {"id": 0, "method": command, "params": list(arguments)}
                    writer.write(json.dumps(request).encode())
                    reply = await _read_object(reader)
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            raise VswitchdError(f"ovs-vswitchd: {command}: {error or 'timeout'}") from error
        if reply.get("error") is not None:
            raise VswitchdError(f"ovs-vswitchd: {command}: {str(reply['error']).strip()}")
        return str(reply["result"])

    async def set_neighbour(self, bridge: str, ip: IPAddress, mac: MacAddress) -> None:
        """Tell tunnels the MAC of `ip`, so that no first packet is lost to its resolution."""
        await self.call("tnl/arp/set", bridge, str(ip), mac)

    async def version(self) -> str:
        """Such as "3.1.0"."""
        return (await self.call("version")).split()[3]

    async def wait_gone(self) -> None:
        """Return when the process that answers now has ended (or at once when none does)."""
        try:
            reader, writer = await self._connect()
        except (OSError, VswitchdError):
            return
        try:
            await reader.read()
        except OSError:
            return
        finally:
            writer.close()

    async def wait_ready(self) -> None:
        """Return once a process answers; tries at RECONNECT_SECONDS, for nothing announces it."""
        while True:
            try:
                await self.call("version")
            except VswitchdError:
                await asyncio.sleep(RECONNECT_SECONDS)
            else:
                return

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        pid = self.incarnation().partition("-")[0]
        return await asyncio.open_unix_connection(self._rundir / f"ovs-vswitchd.{pid}.ctl")


async def _read_object(reader: asyncio.StreamReader) -> dict[str, Any]:
    """One JSON object; the stream has no other mark of its end than the object's own."""
    data = bytearray()
    while chunk := await reader.read(1 << 20):
        data += chunk
        if not chunk.rstrip().endswith(b"}"):
            continue  # Not worth a try: what comes may be tens of megabytes.
        try:
            found = json.loads(data)
        except ValueError:
            continue  # the rest has not come yet
        if isinstance(found, dict):
            return found
    raise VswitchdError("ovs-vswitchd closed its control socket without an answer")
