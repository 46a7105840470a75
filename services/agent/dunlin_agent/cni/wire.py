"""
Frames between the executable and the agent, and the strict decoding of what they hold.

A frame is a length (4 bytes, network order) and that many bytes of JSON. The same words stand in
`services/agent/cni/dunlin-cni.c`; a test runs the two against each other.
"""

import asyncio
import re
import struct
from pathlib import Path
from typing import Final, cast, get_args

import msgspec

from dunlin.wire import read
from dunlin_agent.cni.types import (
    CNI_VERSION_MAX,
    CNI_VERSIONS,
    CniError,
    CniErrorCode,
    CniRequest,
    Command,
    NetConf,
)

FRAME_BYTES_MAX: Final = 4 * 1024 * 1024
IFNAME_BYTES_MAX: Final = 15
# Linux's CHECK arrived with 0.4.0, GC and STATUS with 1.1.0.
COMMAND_SINCE: Final = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}

_LENGTH = struct.Struct("!I")
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_IFNAME_REFUSED = re.compile(r"[/:\s]")


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    command: str
    container_id: str = msgspec.field(name="containerID")
    netns: str
    ifname: str
    args: str
    path: str
    config: msgspec.Raw


class _VersionOnly(msgspec.Struct, frozen=True):
    cni_version: str = msgspec.field(default=CNI_VERSION_MAX, name="cniVersion")


_envelopes = msgspec.json.Decoder(_Envelope)
_netconfs = msgspec.json.Decoder(NetConf)
_versions = msgspec.json.Decoder(_VersionOnly)


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """
    The body of one frame.

    Raises:
        CniError: longer than FRAME_BYTES_MAX (UNDECODABLE), or cut short (IO_FAILURE).
    """
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        if length > FRAME_BYTES_MAX:
            raise CniError(CniErrorCode.UNDECODABLE, "request is too long", f"{length} bytes")
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise CniError(CniErrorCode.IO_FAILURE, "request was cut short", str(error)) from error


def frame(body: bytes) -> bytes:
    """A body with its length before it."""
    assert len(body) <= FRAME_BYTES_MAX
    return _LENGTH.pack(len(body)) + body


def encode_reply(exit_status: int, stdout: bytes) -> bytes:
    """The frame that makes the executable print `stdout` and end with 0 or 1."""
    assert exit_status in (0, 1)
    return frame(msgspec.json.encode({"exit": exit_status, "stdout": stdout.decode()}))


def config_version(body: bytes) -> str:
    """The cniVersion for an error object, whatever else is wrong with the request."""
    try:
        version = read(_versions, read(_envelopes, body).config).cni_version
    except msgspec.MsgspecError:
        return CNI_VERSION_MAX
    return version if version in CNI_VERSIONS else CNI_VERSION_MAX


def decode_request(body: bytes) -> CniRequest:
    """
    A request that can be trusted in every field.

    Raises:
        CniError: with the specification's code for the field that is wrong.
    """
    try:
        envelope = read(_envelopes, body)
    except msgspec.MsgspecError as error:
        raise CniError(CniErrorCode.UNDECODABLE, "cannot decode the request", str(error)) from error
    if envelope.command not in get_args(Command):
        raise CniError(
            CniErrorCode.INVALID_ENVIRONMENT, "unknown CNI_COMMAND", repr(envelope.command)
        )
    command = cast("Command", envelope.command)
    conf = _decode_netconf(envelope.config, command)
    if command in ("ADD", "DEL", "CHECK"):
        _check_ids(envelope)
    if command in ("ADD", "CHECK") and not envelope.netns:
        raise CniError(CniErrorCode.INVALID_ENVIRONMENT, "missing CNI_NETNS", f"{command} needs it")
    return CniRequest(
        command=command,
        container_id=envelope.container_id,
        netns=Path(envelope.netns) if envelope.netns else None,
        ifname=envelope.ifname,
        args=decode_args(envelope.args),
        conf=conf,
    )


def decode_args(text: str) -> dict[str, str]:
    """
    CNI_ARGS, `KEY=VALUE;KEY=VALUE`; an empty text holds nothing.

    Raises:
        CniError: a part without "=" or without a key (INVALID_ENVIRONMENT).
    """
    pairs = {}
    for part in filter(None, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise CniError(CniErrorCode.INVALID_ENVIRONMENT, "invalid CNI_ARGS", repr(part))
        pairs[key] = value
    return pairs


def _decode_netconf(raw: msgspec.Raw, command: Command) -> NetConf:
    """A configuration of a version that has `command`."""
    try:
        conf = read(_netconfs, raw)
    except msgspec.ValidationError as error:
        raise CniError(
            CniErrorCode.INVALID_CONFIG, "invalid network configuration", str(error)
        ) from error
    except msgspec.DecodeError as error:
        raise CniError(
            CniErrorCode.UNDECODABLE, "cannot decode the network configuration", str(error)
        ) from error
    if conf.cni_version not in CNI_VERSIONS:
        raise CniError(
            CniErrorCode.INCOMPATIBLE_VERSION, "incompatible CNI version", conf.cni_version
        )
    since = COMMAND_SINCE.get(command, CNI_VERSIONS[0])
    if CNI_VERSIONS.index(conf.cni_version) < CNI_VERSIONS.index(since):
        raise CniError(
            CniErrorCode.INCOMPATIBLE_VERSION,
            "incompatible CNI version",
            f"{command} needs cniVersion {since} or later, not {conf.cni_version}",
        )
    if not conf.name:
        raise CniError(CniErrorCode.INVALID_CONFIG, "invalid network configuration", "empty name")
    if command == "GC" and conf.valid_attachments is None:
        raise CniError(
            CniErrorCode.INVALID_CONFIG,
            "invalid network configuration",
            'GC needs "cni.dev/valid-attachments"',
        )
    return conf


def _check_ids(envelope: _Envelope) -> None:
    """Refuse container ids and interface names that the specification or Linux refuses."""
    if not _CONTAINER_ID.fullmatch(envelope.container_id):
        raise CniError(
            CniErrorCode.INVALID_ENVIRONMENT, "invalid CNI_CONTAINERID", repr(envelope.container_id)
        )
    name = envelope.ifname
    too_long = not 1 <= len(name.encode()) <= IFNAME_BYTES_MAX
    if too_long or name in (".", "..") or "\0" in name or _IFNAME_REFUSED.search(name):
        raise CniError(CniErrorCode.INVALID_ENVIRONMENT, "invalid CNI_IFNAME", repr(name))
