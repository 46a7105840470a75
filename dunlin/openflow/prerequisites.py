"""
What a match must say before it, or a set_field, may name a field: ovs-fields(7) "Prerequisites".

The names of the errors are the specification's, as OVS 3.1 gives them.
"""

from dunlin.openflow.fields import (
    CT_STATE_BITS,
    ETH_ARP,
    ETH_IPV4,
    ETH_IPV6,
    IP_ICMP,
    IP_ICMPV6,
    IP_SCTP,
    IP_TCP,
    IP_UDP,
)
from dunlin.openflow.flow import Action, Ct, DecTtl, FieldMatch, Match, Move, SetField

_IP = frozenset({ETH_IPV4, ETH_IPV6})
_V4, _V6, _ARP = frozenset({ETH_IPV4}), frozenset({ETH_IPV6}), frozenset({ETH_ARP})
_ND_SOLICIT, _ND_ADVERT = 135, 136

_ETH_TYPES: dict[str, frozenset[int]] = {
    "nw_ttl": _IP,
    "nw_src": _V4,
    "nw_dst": _V4,
    "ipv6_src": _V6,
    "ipv6_dst": _V6,
    "arp_op": _ARP,
    "arp_spa": _ARP,
    "arp_tpa": _ARP,
    "arp_sha": _ARP,
    "arp_tha": _ARP,
    "ct_nw_src": _V4,
    "ct_nw_dst": _V4,
    "ct_ipv6_src": _V6,
    "ct_ipv6_dst": _V6,
}
_PROTOCOLS = {"tcp": IP_TCP, "udp": IP_UDP, "sctp": IP_SCTP, "icmp": IP_ICMP, "icmpv6": IP_ICMPV6}
_ND_TYPES = {
    "nd_target": {_ND_SOLICIT, _ND_ADVERT},
    "nd_options_type": {_ND_SOLICIT, _ND_ADVERT},
    "nd_reserved": {_ND_SOLICIT, _ND_ADVERT},
    "nd_sll": {_ND_SOLICIT},
    "nd_tll": {_ND_ADVERT},
}
_CT_ORIGINAL = frozenset({
    "ct_nw_proto", "ct_nw_src", "ct_nw_dst", "ct_ipv6_src", "ct_ipv6_dst", "ct_tp_src", "ct_tp_dst",
})  # fmt: skip
_CT_ONLY = frozenset({"ct_mark", "ct_label"})
_READ_ONLY = frozenset(
    {"conj_id", "dp_hash", "ct_state", "ct_zone", "eth_type", "nw_proto", *_CT_ORIGINAL}
)


def refusal(match: Match, actions: tuple[Action, ...]) -> str | None:
    """
    Why OVS refuses a flow for its fields: the error's name; None if it does not.

    Only the match counts, not what earlier actions set: a flow that makes a solicitation into an
    advertisement needs another table to set nd_tll.
    """
    known = {item.field: item for item in match}
    for item in match:
        if not _met(item.field, known):
            return "OFPBMC_BAD_PREREQ"
    for action in actions:
        error = _refused_action(action, known)
        if error:
            return error
    return None


def _refused_action(action: Action, known: dict[str, FieldMatch]) -> str | None:
    match action:
        case SetField(field=field) if field in _CT_ONLY or field in _READ_ONLY:
            return "OFPBAC_BAD_SET_ARGUMENT"
        case SetField(field=field) if not _met(field, known):
            return "OFPBAC_MATCH_INCONSISTENT"
        case Move(src=src, dst=dst) if not (_met(src, known) and _met(dst, known)):
            return "OFPBAC_MATCH_INCONSISTENT"
        case Move(dst=dst) if dst in _CT_ONLY or dst in _READ_ONLY:
            return "OFPBAC_BAD_SET_ARGUMENT"
        case Ct() | DecTtl() if known.get("eth_type") is None or known["eth_type"].value not in _IP:
            return "OFPBAC_MATCH_INCONSISTENT"
    return None


def _met(field: str, known: dict[str, FieldMatch]) -> bool:
    """The match fixes everything that this field needs."""
    eth_type = known["eth_type"].value if "eth_type" in known else None
    proto = _exact(known, "nw_proto")
    if field in _ETH_TYPES and eth_type not in _ETH_TYPES[field]:
        return False
    if field == "nw_proto" and eth_type not in _IP:
        return False
    if field in _ND_TYPES:
        return (
            eth_type == ETH_IPV6
            and proto == IP_ICMPV6
            and _exact(known, "icmpv6_type") in _ND_TYPES[field]
            and _exact(known, "icmpv6_code") in (None, 0)
        )
    if field in _CT_ORIGINAL and not _valid_connection(known.get("ct_state")):
        return False
    needed = _PROTOCOLS.get(field.split("_", 1)[0])
    if field.startswith("ct_tp"):
        # OVS takes it without, but forgets it: better refused.
        return _exact(known, "ct_nw_proto") in (IP_TCP, IP_UDP, IP_SCTP)
    if needed is None:
        return True
    families = {IP_ICMP: _V4, IP_ICMPV6: _V6}.get(needed, _IP)
    return proto == needed and eth_type in families


def _exact(known: dict[str, FieldMatch], field: str) -> int | None:
    item = known.get(field)
    return None if item is None or item.mask is not None else item.value


def _valid_connection(state: FieldMatch | None) -> bool:
    """A ct_state that only a packet with a valid connection has."""
    if state is None:
        return False
    valid = sum(CT_STATE_BITS[name] for name in ("new", "est", "rel", "rpl", "snat", "dnat"))
    mask = 0xFF if state.mask is None else state.mask
    not_invalid = bool(mask & CT_STATE_BITS["inv"]) and not state.value & CT_STATE_BITS["inv"]
    return bool(state.value & valid) or (bool(state.value & CT_STATE_BITS["trk"]) and not_invalid)
