"""Meters in a switch's replies: OFPMP_METER_CONFIG and OFPMP_METER (OpenFlow 1.5, 7.3.5)."""

import struct
from collections.abc import Iterator
from typing import Final, Literal

from dunlin.openflow.flow import Meter
from dunlin.openflow.messages import MeterCounters, OpenFlowError

_CONFIG: Final = struct.Struct("!HHI")
_BAND: Final = struct.Struct("!HHII4x")
_STATS: Final = struct.Struct("!IH6xIQQII")
_BAND_STATS: Final = struct.Struct("!QQ")
_KBPS, _PKTPS, _BURST, _STATS_FLAG = 1, 2, 4, 8
_DROP: Final = 1
_UNITS: Final[dict[int, Literal["pps", "kbps"]]] = {
    _KBPS | _BURST | _STATS_FLAG: "kbps",
    _PKTPS | _BURST | _STATS_FLAG: "pps",
}


def decode_meter_configs(data: bytes, offset: int) -> tuple[tuple[Meter, ...], tuple[int, ...]]:
    """Meters of one band that drops, with burst and counters; and the ids of all others."""
    meters: list[Meter] = []
    others: list[int] = []
    for start, length in _entries(data, offset, _CONFIG.size, 0):
        _, flags, meter_id = _CONFIG.unpack_from(data, start)
        meter = _meter(flags, meter_id, data[start + _CONFIG.size : start + length])
        if meter is None:
            others.append(meter_id)
        else:
            meters.append(meter)
    return tuple(meters), tuple(others)


def _meter(flags: int, meter_id: int, bands: bytes) -> Meter | None:
    if len(bands) != _BAND.size or flags not in _UNITS:
        return None
    kind, _, rate, burst = _BAND.unpack(bands)
    return Meter(meter_id, rate, burst, _UNITS[flags]) if kind == _DROP else None


def decode_meter_stats(data: bytes, offset: int) -> tuple[MeterCounters, ...]:
    """Counters; of several bands the sum."""
    found = []
    for start, length in _entries(data, offset, _STATS.size, 4):
        meter_id, _, flows, packets, octets, _, _ = _STATS.unpack_from(data, start)
        bands = data[start + _STATS.size : start + length]
        if len(bands) % _BAND_STATS.size:
            raise OpenFlowError(f"counters of meter {meter_id:#x}: {len(bands)} bytes of bands")
        dropped = list(_BAND_STATS.iter_unpack(bands))
        counted = sum(one for one, _ in dropped), sum(size for _, size in dropped)
        found.append(MeterCounters(meter_id, flows, packets, octets, *counted))
    return tuple(found)


def _entries(data: bytes, offset: int, least: int, at: int) -> Iterator[tuple[int, int]]:
    """(start, length) of each; `at`: where an entry says its length."""
    while offset < len(data):
        if offset + least > len(data):
            raise OpenFlowError(f"a meter in {len(data) - offset} bytes")
        (length,) = struct.unpack_from("!H", data, offset + at)
        if length < least or offset + length > len(data):
            raise OpenFlowError(f"a meter of length {length}, {len(data) - offset} bytes left")
        yield offset, length
        offset += length


def encode_meter_config(meter: Meter) -> bytes:
    """One entry of OFPMP_METER_CONFIG, as a switch says it."""
    unit = _KBPS if meter.unit == "kbps" else _PKTPS
    head = _CONFIG.pack(_CONFIG.size + _BAND.size, unit | _BURST | _STATS_FLAG, meter.meter_id)
    return head + _BAND.pack(_DROP, _BAND.size, meter.rate, meter.burst)


def encode_meter_stats(counters: MeterCounters) -> bytes:
    """One entry of OFPMP_METER, as a switch says it."""
    length = _STATS.size + _BAND_STATS.size
    head = _STATS.pack(
        counters.meter_id, length, counters.flows, counters.packets, counters.bytes, 0, 0
    )
    return head + _BAND_STATS.pack(counters.dropped_packets, counters.dropped_bytes)
