"""
The pipeline as data: tables, conntrack zones, marks and reserved addresses, declared once.

docs/pipeline.md is generated from this file (`make docs`).
"""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address


class Table(IntEnum):
    """OpenFlow tables in the order of traversal; gaps are for what comes later."""

    CLASSIFIER = 0
    ARP_RESPONDER = 5
    ND_RESPONDER = 6
    ND_REPLY = 7
    EXTERNAL_REPLY = 10
    UNSNAT = 11
    CONNTRACK = 12
    SERVICE_TRAFFIC = 13
    CONNTRACK_STATE = 14
    EGRESS_METRIC = 15
    INGRESS_METRIC = 17
    AFFINITY = 18
    AFFINITY_LEARN = 19
    NODE_ADDRESS = 20
    ENDPOINT_SLOT = 21
    SERVICE_LB = 22
    SERVICE_ENDPOINTS = 23
    AFFINITY_ENDPOINT = 24
    ENDPOINT_SELECTED = 25
    EGRESS_SUBJECT = 26
    EGRESS_PEER = 27
    EGRESS_NETWORK = 28
    EGRESS_ADMIN = 29
    EGRESS_POLICY = 30
    EGRESS_BASELINE = 31
    INGRESS_SUBJECT = 36
    INGRESS_PEER = 37
    INGRESS_NETWORK = 38
    INGRESS_ADMIN = 39
    INGRESS_POLICY = 40
    INGRESS_BASELINE = 41
    POLICY_DENY = 48
    COMMIT = 50
    SERVICE_SNAT = 52
    L3_FORWARD = 60
    NEXT_HOP = 62
    BEYOND = 64
    HAIRPIN = 70
    HAIRPIN_OUTPUT = 72
    EXTERNAL = 80
    EXTERNAL_GATEWAY = 82
    EXTERNAL_UPLINK = 84
    DIGEST = 250

    @property
    def title(self) -> str:
        """As people read it: `ServiceLB`."""
        return _TITLES[self]


POLICY_TABLES = frozenset(
    table
    for table in Table
    if Table.EGRESS_SUBJECT <= table <= Table.COMMIT or table == Table.CONNTRACK_STATE
)
"""Where policy is decided: a change of it is one bundle, whatever its size."""

_TITLES = {
    Table.CLASSIFIER: "Classifier",
    Table.ARP_RESPONDER: "ARPResponder",
    Table.ND_RESPONDER: "NDResponder",
    Table.ND_REPLY: "NDReply",
    Table.EXTERNAL_REPLY: "ExternalReply",
    Table.UNSNAT: "UnSNAT",
    Table.CONNTRACK: "Conntrack",
    Table.SERVICE_TRAFFIC: "ServiceTraffic",
    Table.CONNTRACK_STATE: "ConntrackState",
    Table.EGRESS_METRIC: "EgressMetric",
    Table.INGRESS_METRIC: "IngressMetric",
    Table.NODE_ADDRESS: "NodeAddress",
    Table.ENDPOINT_SLOT: "EndpointSlot",
    Table.SERVICE_LB: "ServiceLB",
    Table.SERVICE_ENDPOINTS: "ServiceEndpoints",
    Table.ENDPOINT_SELECTED: "EndpointSelected",
    Table.AFFINITY: "Affinity",
    Table.AFFINITY_ENDPOINT: "AffinityEndpoint",
    Table.AFFINITY_LEARN: "AffinityLearn",
    Table.EGRESS_SUBJECT: "EgressSubject",
    Table.EGRESS_PEER: "EgressPeer",
    Table.EGRESS_NETWORK: "EgressNetwork",
    Table.EGRESS_ADMIN: "EgressAdmin",
    Table.EGRESS_POLICY: "EgressPolicy",
    Table.EGRESS_BASELINE: "EgressBaseline",
    Table.INGRESS_SUBJECT: "IngressSubject",
    Table.INGRESS_PEER: "IngressPeer",
    Table.INGRESS_NETWORK: "IngressNetwork",
    Table.INGRESS_ADMIN: "IngressAdmin",
    Table.INGRESS_POLICY: "IngressPolicy",
    Table.INGRESS_BASELINE: "IngressBaseline",
    Table.POLICY_DENY: "PolicyDeny",
    Table.COMMIT: "Commit",
    Table.SERVICE_SNAT: "ServiceSNAT",
    Table.L3_FORWARD: "L3Forward",
    Table.NEXT_HOP: "NextHop",
    Table.BEYOND: "Beyond",
    Table.HAIRPIN: "Hairpin",
    Table.HAIRPIN_OUTPUT: "HairpinOutput",
    Table.EXTERNAL: "External",
    Table.EXTERNAL_GATEWAY: "ExternalGateway",
    Table.EXTERNAL_UPLINK: "ExternalUplink",
    Table.DIGEST: "Digest",
}

PURPOSE = {
    Table.CLASSIFIER: "in_port -> source; a Pod must use its own MAC and addresses",
    Table.ARP_RESPONDER: "the gateway's MAC for every ARP request",
    Table.ND_RESPONDER: "a neighbour solicitation becomes an advertisement",
    Table.ND_REPLY: "… with the gateway's MAC (its fields exist only after the type has changed)",
    Table.EXTERNAL_REPLY: "from outside to the node: a Pod's reply, or perhaps for a Service",
    Table.UNSNAT: "replies of connections whose source ServiceSNAT or Hairpin translated",
    Table.CONNTRACK: "one lookup in zone MAIN, with NAT of known connections",
    Table.SERVICE_TRAFFIC: "a Service's connection: count it for its endpoint (ct_label)",
    Table.CONNTRACK_STATE: "invalid: drop; established: to the metrics and L3Forward; new: on",
    Table.EGRESS_METRIC: "established: counted for the egress rule that allowed it (ct_label)",
    Table.INGRESS_METRIC: "established: counted for the ingress rule that allowed it",
    Table.NODE_ADDRESS: "is it for an address where this node serves NodePorts? its zone",
    Table.ENDPOINT_SLOT: "of many endpoints: bits of dp_hash -> one of them",
    Table.SERVICE_LB: "port of a Service -> select group, or the set wanted; hostPort -> the Pod",
    Table.SERVICE_ENDPOINTS: "set wanted (cluster, local), this node and its zone -> select group",
    Table.ENDPOINT_SELECTED: "an endpoint has been chosen: is it the client itself? far away?",
    Table.AFFINITY: "learned: client and Service -> the endpoint that it had",
    Table.AFFINITY_ENDPOINT: "that endpoint, if it still is one; else the select group",
    Table.AFFINITY_LEARN: "the chosen endpoint is remembered for this client",
    Table.EGRESS_SUBJECT: "source: a Pod here -> its class; one not known yet is fenced",
    Table.EGRESS_PEER: "destination (after DNAT): Pod -> its class as a peer",
    Table.EGRESS_NETWORK: "destination: longest prefix -> class of ipBlocks",
    Table.EGRESS_ADMIN: "ClusterNetworkPolicies of tier Admin, by priority",
    Table.EGRESS_POLICY: "NetworkPolicies; what is isolated and not allowed is denied",
    Table.EGRESS_BASELINE: "ClusterNetworkPolicies of tier Baseline: what is not isolated",
    Table.INGRESS_SUBJECT: "destination: a Pod here -> its class; its own node is let through",
    Table.INGRESS_PEER: "source: Pod -> its class as a peer",
    Table.INGRESS_NETWORK: "source: longest prefix -> class of ipBlocks",
    Table.INGRESS_ADMIN: "as EgressAdmin",
    Table.INGRESS_POLICY: "as EgressPolicy",
    Table.INGRESS_BASELINE: "as EgressBaseline",
    Table.POLICY_DENY: "forbidden: a connection that was allowed is marked denied; drop",
    Table.COMMIT: "new connections that no Service has committed, each with its own replies",
    Table.SERVICE_SNAT: "source NAT of clients whose endpoint would not answer through this node",
    Table.L3_FORWARD: "destination -> Pod, gateway, other node, or what is beyond",
    Table.NEXT_HOP: "to the node that the route names: this switch's uplink or tunnel",
    Table.BEYOND: "nobody's in the cluster: drop; the rest: the world outside",
    Table.HAIRPIN: "source NAT of connections from a Pod to itself",
    Table.HAIRPIN_OUTPUT: "back out of the port where they came from",
    Table.EXTERNAL: "source NAT to the node's address",
    Table.EXTERNAL_GATEWAY: "the node's kernel finds the next hop",
    Table.EXTERNAL_UPLINK: "straight to the default gateway",
    Table.DIGEST: "no packet comes here: what this switch holds, for its next owner (ADR 0046)",
}


class Zone(IntEnum):
    """Conntrack zones of the userspace datapath."""

    MAIN = 64000
    HAIRPIN = 64001
    EXTERNAL = 64002
    SERVICE_SNAT = 64003


@dataclass(frozen=True, slots=True)
class Mark:
    """Bits of ct_mark in zone MAIN (or of another field)."""

    value: int
    mask: int

    @property
    def pair(self) -> tuple[int, int]:
        """(value, mask), as `match` and `set_field` take them."""
        return (self.value, self.mask)


SERVICE = Mark(0x1, 0x1)
HAIRPIN_MARK = Mark(0x2, 0x2)
# A connection that was established when policy began to forbid it: its replies are dropped too.
DENIED = Mark(0x4, 0x4)
# The generation of policy under which a connection was allowed: bits 8-31.
GENERATION_SHIFT = 8
GENERATION_MASK = 0xFFFFFF00

# ct_label in zone MAIN: bits 0-63 say which policy rules allowed the connection, bits 64-127 which
# endpoint of which ServicePort it has (pipeline/traffic.py).
RULES_LABEL_BITS = 64
ENDPOINT_LABEL_SHIFT = 64
ENDPOINT_LABEL_BITS = 64
# Of these 64, as conjunction ids; 0: no rule did.
INGRESS_RULE_LABEL_SHIFT = 0
EGRESS_RULE_LABEL_SHIFT = 32
RULE_LABEL_MASK = 0xFFFFFFFF

# Registers of the policy tables: the lower half of xxreg0 becomes that of ct_label.
EGRESS_RULE_REG = "reg2"
INGRESS_RULE_REG = "reg3"
RULES_XXREG = "xxreg0"
# Classes are 62 bits in two registers each, the upper half first.
SUBJECT_REGS = ("reg4", "reg5")
PEER_REGS = ("reg6", "reg7")
NETWORK_REGS = ("reg8", "reg9")
# A Service connection whose client is beyond the uplink or the tunnel: replies go back as they are.
EXTERNAL_MARK = Mark(0x10, 0x10)
# … and whose source is translated, because its endpoint would not answer through this node.
SNAT_MARK = Mark(0x20, 0x20)
# A Service connection that the node's kernel has sent: its own process's, or a client's behind it
# (a container on another bridge of the node). Replies go back to the kernel, whoever it is.
VIA_NODE_MARK = Mark(0x40, 0x40)

# Registers: bits of reg10; the node's zone (zone_number); the set of endpoints wanted (a group id);
# the endpoint of a client with affinity (a bucket id of that group).
FLAGS = "reg10"
TO_NODE = Mark(0x1, 0x1)
HAS_SCTP = Mark(0x2, 0x2)
AS_IS = Mark(0x4, 0x4)
AGAIN = Mark(0x8, 0x8)
NULL_NAT = Mark(0x10, 0x10)
OWN_REPLIES = Mark(0x20, 0x20)
ZONE_REG = "reg11"
WANTED_REG = "reg12"
ENDPOINT_REG = "reg13"
LIFETIME_REG = "reg14"
NOTHING_REG = "reg15"

# What a route says of its node, between L3Forward and NextHop, in registers that only policy needs
# before: numbers of up to four subnets; which kinds of tunnel end there; these ends.
SUBNET_REGS = ("reg4", "reg5", "reg6", "reg7")
SUBNETS_XXREG = "xxreg1"
WAYS_REG = "reg8"
TUNNEL_V4 = Mark(0x1, 0x1)
TUNNEL_V6 = Mark(0x2, 0x2)
TUNNEL_V4_REG = "reg9"
TUNNEL_V6_XXREG = "xxreg0"

REGISTERS = {
    f"{FLAGS} {TO_NODE.value:#x}": "to an address where this node serves NodePorts",
    f"{FLAGS} {HAS_SCTP.value:#x}": "this Open vSwitch tracks SCTP ports (3.2 and later)",
    f"{FLAGS} {AS_IS.value:#x}": "leaves for the world outside without source NAT",
    f"{FLAGS} {AGAIN.value:#x}": "the second walk, by policy as it will be (ADR 0030)",
    f"{FLAGS} {NULL_NAT.value:#x}": "this Open vSwitch survives NAT to the same (ADR 0044)",
    f"{FLAGS} {OWN_REPLIES.value:#x}": "from here to no Service: with its own replies (ADR 0044)",
    ZONE_REG: "the node's zone: 32 bits of SHA-256 of its name, 0 for none",
    WANTED_REG: "the set of endpoints wanted: a group id",
    ENDPOINT_REG: "a client with affinity: its bucket id of that group; else bits of dp_hash",
    LIFETIME_REG: "of learned flows alone: seconds without use after which flowctl removes it",
    NOTHING_REG: "always 0",
    "reg4-reg7": "from L3Forward on: subnets of the route's node, 32 bits of SHA-256 each",
    f"{WAYS_REG} {TUNNEL_V4.value:#x}": "… a tunnel may lead to the address in reg9",
    f"{WAYS_REG} {TUNNEL_V6.value:#x}": "… a tunnel may lead to the address in xxreg0",
}

# userdata of packets that the controller must refuse (TCP RST, ICMP port unreachable).
REJECT_USERDATA = b"dunlin-reject"
REJECT_MAX_LEN = 1300

# … and of denied packets that are to be logged: + what (policy.py); sampled by this meter.
DENY_USERDATA = b"dunlin-deny"
DENY_MAX_LEN = 128
DENY_METER = 1

# Meters of Pods' interfaces: these + the OpenFlow port, which no two of a switch share.
EGRESS_METERS = 0x10000
INGRESS_METERS = 0x20000

HAIRPIN_V4 = IPv4Address("169.254.0.253")
HAIRPIN_V6 = IPv6Address("fd64:756e:6c69:6e::fd")

# Source ports that a Pod's connections to the world outside take on the node's address. One mask
# (0xf000/0xf000) names them all, and they lie above Linux' ephemeral range (32768-60999).
EXTERNAL_PORT_MIN = 0xF000
EXTERNAL_PORT_MAX = 0xFFFF

# br-ext sets this pkt_mark on what it passes to br-int for a look-up in zone EXTERNAL: frames that
# br-ext merely floods (before it has learned a MAC address) must not come back twice.
EXTERNAL_PKT_MARK = 0xD1

# Of more endpoints than this flows, not buckets, choose one (spread.py).
FLAT_BUCKETS_MAX = 32
# dp_hash slots of a group: OVS takes at most 256.
HASH_SLOTS = 256


class Priority(IntEnum):
    """Priorities, from strongest to the table-miss flow."""

    GUARD = 210
    EXACT = 200
    LOCAL = 190
    ROUTE = 180
    RELATED = 170
    FALLBACK = 160
    DROP = 150
    DEFAULT = 100
    MISS = 0


def zone_number(zone: str) -> int:
    """The number of a topology zone: 32 bits of its SHA-256, never 0; 0 for no zone."""
    if not zone:
        return 0
    return int.from_bytes(hashlib.sha256(zone.encode()).digest()[:4], "big") or 1


def table_names() -> dict[int, str]:
    """Table number -> name, for rendering."""
    return {int(table): table.title for table in Table}
