"""
The runtime's side of CNI: call a plugin executable as containerd does, in the node's namespace.

Source: CNI specification 1.1, "Section 4: Plugin Execution" (parameters, GC attachments, errors).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_interface
from pathlib import Path
from typing import Any, Literal

from dunlin_lab import netns

TIMEOUT_S = 60.0
IFNAME = "eth0"
CNI_TRY_AGAIN_LATER = 11

Command = Literal["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"]


class CniError(Exception):
    """The plugin failed; `code` is the specification's, 0 when it gave none (or did not run)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Attachment:
    """One Pod's interface, as every command about it names it."""

    container_id: str
    netns: Path
    namespace: str
    name: str
    uid: str
    ifname: str = IFNAME

    @property
    def environment(self) -> dict[str, str]:
        """CNI_* of ADD, DEL and CHECK; the K8S_ arguments are what containerd gives."""
        arguments = {
            "IgnoreUnknown": "1",
            "K8S_POD_NAMESPACE": self.namespace,
            "K8S_POD_NAME": self.name,
            "K8S_POD_INFRA_CONTAINER_ID": self.container_id,
            "K8S_POD_UID": self.uid,
        }
        return {
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": str(self.netns),
            "CNI_IFNAME": self.ifname,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in arguments.items()),
        }


@dataclass(frozen=True, slots=True)
class Plugin:
    """The network configuration of one node and the executable it names."""

    binary: Path
    node_netns: Path
    conf: dict[str, Any] = field(default_factory=dict)
    """At least cniVersion, name and type."""
    environment: dict[str, str] = field(default_factory=dict)

    async def add(self, attachment: Attachment) -> tuple[str, ...]:
        """
        Attach.

        Returns:
            The Pod's addresses, IPv4 first.
        Raises:
            CniError: it failed, or gave no address.
        """
        result = await self._call("ADD", attachment.environment)
        try:
            addresses = [ip_interface(entry["address"]).ip for entry in result["ips"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CniError(0, f"ADD {attachment.name}: result {result!r}: {error!r}") from error
        if not addresses:
            raise CniError(0, f"ADD {attachment.name}: result has no ips")
        return tuple(str(address) for address in sorted(addresses, key=lambda a: a.version))

    async def delete(self, attachment: Attachment) -> None:
        """Detach; the specification asks plugins to succeed when there is nothing to do."""
        await self._call("DEL", attachment.environment)

    async def check(self, attachment: Attachment, previous: dict[str, Any]) -> None:
        """Verify; `previous` is the result of ADD."""
        await self._call("CHECK", attachment.environment, {"prevResult": previous})

    async def collect(self, valid: Iterable[tuple[str, str]]) -> None:
        """
        GC: whatever is not in `valid` (container id, interface name) may go.

        libcni gives the list under two names, since the specification once had the second.
        """
        attachments = [{"containerID": cid, "ifname": ifname} for cid, ifname in valid]
        keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
        await self._call("GC", {}, dict.fromkeys(keys, attachments))

    async def status(self) -> None:
        """Raises CniError when the plugin is not ready for ADD."""
        await self._call("STATUS", {})

    async def _call(
        self, command: Command, environment: dict[str, str], more: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run the executable; its result, {} where the command has none."""
        full = {
            **os.environ,
            **self.environment,
            "CNI_COMMAND": command,
            "CNI_PATH": str(self.binary.parent),
            **environment,
        }
        conf = json.dumps({**self.conf, **(more or {})}).encode()
        return await netns.run_in_async(self.node_netns, lambda: self._run(command, full, conf))

    def _run(self, command: str, environment: dict[str, str], conf: bytes) -> dict[str, Any]:
        """In the node's namespace: fork and exec, as a runtime does."""
        what = f"CNI {command} {environment.get('CNI_CONTAINERID', '')[:10]}".rstrip()
        try:
            done = subprocess.run(
                [str(self.binary)],
                input=conf,
                env=environment,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CniError(0, f"{what}: {error}") from error
        try:
            result = json.loads(done.stdout) if done.stdout.strip() else {}
        except ValueError as error:
            raise CniError(0, f"{what}: stdout is not JSON: {done.stdout[:200]!r}") from error
        if done.returncode == 0 and isinstance(result, dict):
            return result
        raise _error(what, done.returncode, result, done.stderr)


def _error(what: str, code: int, result: Any, stderr: bytes) -> CniError:
    """The error object of the specification, or what came instead."""
    if isinstance(result, dict) and "msg" in result:
        number = result.get("code")
        text = ": ".join(str(result[key]) for key in ("msg", "details") if result.get(key))
        return CniError(number if isinstance(number, int) else 0, f"{what}: {text}")
    tail = stderr.decode(errors="replace").strip()[-300:]
    return CniError(0, f"{what}: exit code {code}: {tail}")
