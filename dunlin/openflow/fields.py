"""The match fields that Dunlin uses, by their names in ovs-fields(7)."""

from dataclasses import dataclass
from enum import Enum

ETH_IPV4 = 0x0800
ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD
IP_ICMP = 1
IP_TCP = 6
IP_UDP = 17
IP_ICMPV6 = 58
IP_SCTP = 132


class Form(Enum):
    """How a field is written for people."""

    DECIMAL = "decimal"
    HEX = "hex"
    MAC = "mac"
    IPV4 = "ipv4"
    IPV6 = "ipv6"
    PORT = "port"
    CT_STATE = "ct_state"


@dataclass(frozen=True, slots=True)
class Field:
    """One field: width in bits and form. Identity is the name."""

    name: str
    bits: int
    form: Form

    @property
    def all_ones(self) -> int:
        """The mask that matches every bit."""
        return (1 << self.bits) - 1


def _fields(*fields: Field) -> dict[str, Field]:
    return {field.name: field for field in fields}


FIELDS = _fields(
    Field("in_port", 32, Form.PORT),
    Field("eth_src", 48, Form.MAC),
    Field("eth_dst", 48, Form.MAC),
    Field("eth_type", 16, Form.HEX),
    Field("nw_proto", 8, Form.DECIMAL),
    Field("nw_ttl", 8, Form.DECIMAL),
    Field("nw_src", 32, Form.IPV4),
    Field("nw_dst", 32, Form.IPV4),
    Field("ipv6_src", 128, Form.IPV6),
    Field("ipv6_dst", 128, Form.IPV6),
    Field("tcp_src", 16, Form.DECIMAL),
    Field("tcp_dst", 16, Form.DECIMAL),
    Field("tcp_flags", 16, Form.HEX),
    Field("udp_src", 16, Form.DECIMAL),
    Field("udp_dst", 16, Form.DECIMAL),
    Field("sctp_src", 16, Form.DECIMAL),
    Field("sctp_dst", 16, Form.DECIMAL),
    Field("icmp_type", 8, Form.DECIMAL),
    Field("icmp_code", 8, Form.DECIMAL),
    Field("icmpv6_type", 8, Form.DECIMAL),
    Field("icmpv6_code", 8, Form.DECIMAL),
    Field("arp_op", 16, Form.DECIMAL),
    Field("arp_spa", 32, Form.IPV4),
    Field("arp_tpa", 32, Form.IPV4),
    Field("arp_sha", 48, Form.MAC),
    Field("arp_tha", 48, Form.MAC),
    Field("nd_target", 128, Form.IPV6),
    Field("nd_sll", 48, Form.MAC),
    Field("nd_tll", 48, Form.MAC),
    Field("nd_options_type", 8, Form.DECIMAL),
    Field("nd_reserved", 32, Form.HEX),
    Field("ct_state", 32, Form.CT_STATE),
    Field("ct_zone", 16, Form.DECIMAL),
    Field("ct_mark", 32, Form.HEX),
    Field("ct_label", 128, Form.HEX),
    Field("ct_nw_src", 32, Form.IPV4),
    Field("ct_nw_dst", 32, Form.IPV4),
    Field("ct_ipv6_src", 128, Form.IPV6),
    Field("ct_ipv6_dst", 128, Form.IPV6),
    Field("ct_tp_src", 16, Form.DECIMAL),
    Field("ct_tp_dst", 16, Form.DECIMAL),
    Field("ct_nw_proto", 8, Form.DECIMAL),
    Field("tun_id", 64, Form.HEX),
    Field("tun_src", 32, Form.IPV4),
    Field("tun_dst", 32, Form.IPV4),
    Field("tun_ipv6_src", 128, Form.IPV6),
    Field("tun_ipv6_dst", 128, Form.IPV6),
    Field("conj_id", 32, Form.DECIMAL),
    Field("dp_hash", 32, Form.HEX),
    Field("pkt_mark", 32, Form.HEX),
    *(Field(f"reg{i}", 32, Form.HEX) for i in range(16)),
    *(Field(f"xxreg{i}", 128, Form.HEX) for i in range(4)),
)

CT_STATE_BITS = {
    "new": 0x01,
    "est": 0x02,
    "rel": 0x04,
    "rpl": 0x08,
    "inv": 0x10,
    "trk": 0x20,
    "snat": 0x40,
    "dnat": 0x80,
}
