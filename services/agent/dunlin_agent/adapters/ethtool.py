"""
Offload features of a network device, by the SIOCETHTOOL ioctl.

No process, and no netlink family to resolve.

Source: linux/ethtool.h (ETHTOOL_GSSET_INFO, GSTRINGS, GFEATURES, SFEATURES),
netdev_features_strings.
"""

import ctypes
import fcntl
import socket
import struct
from typing import Final

SIOCETHTOOL: Final = 0x8946
ETHTOOL_GSTRINGS: Final = 0x1B
ETHTOOL_GSSET_INFO: Final = 0x37
ETHTOOL_GFEATURES: Final = 0x3A
ETHTOOL_SFEATURES: Final = 0x3B
ETH_SS_FEATURES: Final = 4
_GSTRING_BYTES: Final = 32
_IFREQ = struct.Struct("16sP16x")


class FeatureSocket:
    """Asks about devices of the namespace in which it was opened."""

    def __init__(self) -> None:
        """Open in the namespace that this thread is in."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def enabled(self, ifname: str, features: frozenset[str]) -> frozenset[str]:
        """Those of `features` that are active; names that this kernel does not know are not."""
        bits = self._bits(ifname)
        blocks = (len(bits) + 31) // 32
        buffer = bytearray(struct.pack("=II", ETHTOOL_GFEATURES, blocks) + bytes(16 * blocks))
        self._ioctl(ifname, buffer)
        active = [struct.unpack_from("=I", buffer, 8 + 16 * i + 8)[0] for i in range(blocks)]
        return frozenset(
            name
            for name in features & bits.keys()
            if active[bits[name] // 32] & (1 << bits[name] % 32)
        )

    def disable(self, ifname: str, features: frozenset[str]) -> None:
        """
        Switch `features` off; the kernel then drops what depends on them (TSO on checksums).

        Raises:
            OSError: no such device, or the device refuses ethtool requests.
        """
        bits = self._bits(ifname)
        blocks = (len(bits) + 31) // 32
        valid = [0] * blocks
        for name in features & bits.keys():
            valid[bits[name] // 32] |= 1 << bits[name] % 32
        body = b"".join(struct.pack("=II", word, 0) for word in valid)
        self._ioctl(ifname, bytearray(struct.pack("=II", ETHTOOL_SFEATURES, blocks) + body))

    def _bits(self, ifname: str) -> dict[str, int]:
        """Bit number of each feature name: a property of the kernel, so asked once."""
        if not _bits_of_this_kernel:
            buffer = bytearray(struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
            self._ioctl(ifname, buffer)
            (count,) = struct.unpack_from("=I", buffer, 16)
            buffer = bytearray(struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count))
            buffer += bytes(_GSTRING_BYTES * count)
            self._ioctl(ifname, buffer)
            for i in range(count):
                start = 12 + _GSTRING_BYTES * i
                name = bytes(buffer[start : start + _GSTRING_BYTES]).split(b"\0")[0].decode()
                if name:
                    _bits_of_this_kernel[name] = i
        return _bits_of_this_kernel

    def _ioctl(self, ifname: str, buffer: bytearray) -> None:
        """The kernel reads and writes `buffer` in place."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        fcntl.ioctl(self._socket, SIOCETHTOOL, _IFREQ.pack(ifname.encode(), address))


_bits_of_this_kernel: dict[str, int] = {}
