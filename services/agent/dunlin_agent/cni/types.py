"""The words of CNI: requests, network configurations, results and errors."""

from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

Command = Literal["ADD", "DEL", "CHECK", "GC", "STATUS"]

CNI_VERSIONS: Final = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
CNI_VERSION_MAX: Final = CNI_VERSIONS[-1]


class CniErrorCode(IntEnum):
    """Error codes of the specification; 100 and above are the plugin's own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    NOT_AVAILABLE_AND_LIMITED = 51
    INTERNAL = 100
    CHECK_FAILED = 101


class CniError(Exception):
    """A failure that the runtime is told of, word for word."""

    def __init__(self, code: CniErrorCode, msg: str, details: str = "") -> None:
        """`msg` is short and the same each time; `details` names the object."""
        super().__init__(f"{msg}: {details}" if details else msg)
        self.code = code
        self.msg = msg
        self.details = details


class Attachment(msgspec.Struct, frozen=True, rename="camel"):
    """One interface of one container, as GC lists those that are still wanted."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str = msgspec.field(name="ifname")


class NetConf(msgspec.Struct, frozen=True, rename="camel"):
    """
    What the runtime gives on standard input.

    Fields that we do not know are ignored: the runtime and `runtimeConfig` add their own.
    `prev_result` stays raw, because only CHECK reads it; b"" or b"null" where there is none.
    """

    cni_version: str
    name: str
    type: str
    agent_socket: str | None = None
    prev_result: msgspec.Raw = msgspec.Raw(b"")
    valid_attachments: tuple[Attachment, ...] | None = msgspec.field(
        default=None, name="cni.dev/valid-attachments"
    )


class CniRequest(msgspec.Struct, frozen=True):
    """A decoded call; `netns` is None only for DEL, GC and STATUS."""

    command: Command
    container_id: str
    netns: Path | None
    ifname: str
    args: dict[str, str]
    conf: NetConf

    @property
    def pod(self) -> tuple[str, str] | None:
        """Namespace and name that kubelet's runtime passes in CNI_ARGS; None outside Kubernetes."""
        namespace, name = self.args.get("K8S_POD_NAMESPACE"), self.args.get("K8S_POD_NAME")
        return (namespace, name) if namespace and name else None

    @property
    def pod_uid(self) -> str | None:
        """K8S_POD_UID, which some runtimes do not pass."""
        return self.args.get("K8S_POD_UID")

    @property
    def who(self) -> str:
        """The object for messages: namespace/name of the Pod, else the container."""
        return "/".join(self.pod) if self.pod else f"container {self.container_id}"


class Interface(msgspec.Struct, frozen=True):
    """An interface of a result; `sandbox` is the Pod's netns path, "" on the host."""

    name: str
    mac: str
    sandbox: str = ""
    mtu_bytes: int | None = None
    socket_path: str | None = None


class IpConfig(msgspec.Struct, frozen=True):
    """An address of a result; `interface` indexes Result.interfaces."""

    address: IPv4Interface | IPv6Interface
    gateway: IPv4Address | IPv6Address | None = None
    interface: int | None = None


class Route(msgspec.Struct, frozen=True):
    """A route that the Pod was given; `gateway` None means on-link."""

    dst: IPv4Network | IPv6Network
    gateway: IPv4Address | IPv6Address | None = None
    mtu_bytes: int | None = None


class Result(msgspec.Struct, frozen=True):
    """What ADD did, free of any cniVersion; `result.render` writes the version asked for."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IpConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: dict[str, Any] = {}
