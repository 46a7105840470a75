"""Results and errors as the JSON of each cniVersion."""

from ipaddress import IPv6Interface
from typing import Any

import msgspec

from dunlin_agent.cni.types import CniError, Interface, IpConfig, Result, Route


def render(result: Result, cni_version: str) -> bytes:
    """A result object; versions before 1.0.0 name the family of each address."""
    body = {
        "cniVersion": cni_version,
        "interfaces": [_interface(item, cni_version) for item in result.interfaces],
        "ips": [_ip(item, cni_version) for item in result.ips],
        "routes": [_route(item, cni_version) for item in result.routes],
        "dns": result.dns,
    }
    return msgspec.json.encode(body) + b"\n"


def render_error(error: CniError, cni_version: str) -> bytes:
    """An error object, the same in every version that we support."""
    body = {
        "cniVersion": cni_version,
        "code": int(error.code),
        "msg": error.msg,
        "details": error.details,
    }
    return msgspec.json.encode(body) + b"\n"


def _interface(item: Interface, cni_version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"name": item.name, "mac": item.mac}
    if item.sandbox:
        body["sandbox"] = item.sandbox
    if cni_version == "1.1.0":
        if item.mtu_bytes is not None:
            body["mtu"] = item.mtu_bytes
        if item.socket_path is not None:
            body["socketPath"] = item.socket_path
    return body


def _ip(item: IpConfig, cni_version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"address": str(item.address)}
    if cni_version.startswith("0."):
        body["version"] = "6" if isinstance(item.address, IPv6Interface) else "4"
    if item.gateway is not None:
        body["gateway"] = str(item.gateway)
    if item.interface is not None:
        body["interface"] = item.interface
    return body


def _route(item: Route, cni_version: str) -> dict[str, Any]:
    body: dict[str, Any] = {"dst": str(item.dst)}
    if item.gateway is not None:
        body["gw"] = str(item.gateway)
    if cni_version == "1.1.0" and item.mtu_bytes is not None:
        body["mtu"] = item.mtu_bytes
    return body
