"""The pipeline of a switch itself: every flow that no Pod, Service, route or policy owns."""

from ipaddress import IPv4Network, IPv6Network

from dunlin.events.facts import Protocol
from dunlin.events.intents import SwitchIntent
from dunlin.model.addresses import GATEWAY_MAC, IPAddress, IPNetwork, mac_to_int
from dunlin.openflow.fields import ETH_ARP, ETH_IPV6, IP_ICMPV6
from dunlin.openflow.flow import (
    OFPP_IN_PORT,
    Action,
    Controller,
    Ct,
    DecTtl,
    Match,
    Move,
    Nat,
    Output,
    Program,
    SetField,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.base import (
    NO_IN_PORT,
    FlowMaker,
    SwitchContext,
    deliver,
    to_gateway,
    with_own_replies,
)
from dunlin.pipeline.families import FAMILIES, Family, family_of, first_of
from dunlin.pipeline.layout import (
    AS_IS,
    EXTERNAL_MARK,
    EXTERNAL_PKT_MARK,
    EXTERNAL_PORT_MAX,
    EXTERNAL_PORT_MIN,
    FLAGS,
    HAIRPIN_MARK,
    HAS_SCTP,
    NULL_NAT,
    OWN_REPLIES,
    REJECT_MAX_LEN,
    REJECT_USERDATA,
    SERVICE,
    SNAT_MARK,
    TO_NODE,
    ZONE_REG,
    Priority,
    Table,
    Zone,
    zone_number,
)
from dunlin.pipeline.node_clients import node_clients
from dunlin.pipeline.policy_state import policy_base
from dunlin.pipeline.route import next_hops
from dunlin.pipeline.traffic import count_nobody

_GO_BACK: tuple[Action, ...] = (NO_IN_PORT, set_field(FLAGS, AS_IS.pair))

ARP = match(eth_type=ETH_ARP)
ARP_REQUEST = match(eth_type=ETH_ARP, arp_op=1)
NEIGHBOUR_SOLICITATION = match(
    eth_type=ETH_IPV6, nw_proto=IP_ICMPV6, icmpv6_type=135, icmpv6_code=0
)
NEIGHBOUR_ADVERTISEMENT = match(
    eth_type=ETH_IPV6, nw_proto=IP_ICMPV6, icmpv6_type=136, icmpv6_code=0
)


def compile_switch(intent: SwitchIntent) -> Program:
    """Every flow of the pipeline that is there on a switch without Pods and Services."""
    context = SwitchContext(intent)
    make = FlowMaker(intent.id)
    _classifier(make, context)
    _neighbours(make)
    _conntrack(make, context)
    _services(make, context)
    policy_base(make, context)
    # What L3Forward leads to comes before it: also where an older pipeline is replaced.
    _beyond(make, context)
    next_hops(make, context)
    node_clients(make, context)
    _forwarding(make, context)
    _hairpin(make, context)
    _external(make, context)
    return Program(tuple(make.flows))


def _classifier(make: FlowMaker, context: SwitchContext) -> None:
    switch = context.switch
    gateway = match(in_port=switch.gateway_port)
    make.add(
        Table.CLASSIFIER, Priority.EXACT, with_fields(gateway, ARP_REQUEST), (), Table.ARP_RESPONDER
    )
    make.add(
        Table.CLASSIFIER,
        Priority.EXACT,
        with_fields(gateway, NEIGHBOUR_SOLICITATION),
        (),
        Table.ND_RESPONDER,
    )
    for family in FAMILIES:
        make.add(
            Table.CLASSIFIER, Priority.LOCAL, with_fields(gateway, family.any), (), Table.UNSNAT
        )
        if switch.tunnel_port:
            tunnel = with_fields(match(in_port=switch.tunnel_port), family.any)
            make.add(Table.CLASSIFIER, Priority.LOCAL, tunnel, (), Table.UNSNAT)
        if switch.uplink_port:
            routed = match(in_port=switch.uplink_port, eth_dst=switch.router_mac)
            # From another node's switch: not from outside, whatever br-ext took it for.
            inside = (set_field("pkt_mark", 0),)
            when = with_fields(routed, family.any)
            make.add(Table.CLASSIFIER, Priority.LOCAL, when, inside, Table.UNSNAT)
    if switch.uplink_port:
        _classify_external(make, context)


def _classify_external(make: FlowMaker, context: SwitchContext) -> None:
    """What br-ext passes on: perhaps the reply to a Pod (zone EXTERNAL) or for a Service."""
    port = match(in_port=context.switch.uplink_port, pkt_mark=EXTERNAL_PKT_MARK)
    for address in context.switch.addresses:
        when = with_fields(port, family_of(address.ip).to(address.ip))
        lookup = Ct(Zone.EXTERNAL, table=Table.EXTERNAL_REPLY, nat=Nat())
        make.add(Table.CLASSIFIER, Priority.FALLBACK, when, (lookup,))
    for family in FAMILIES:
        # To no address of the node: perhaps an external or load balancer IP.
        when = with_fields(port, family.any)
        make.add(Table.CLASSIFIER, Priority.DROP, when, (), Table.UNSNAT)


def _neighbours(make: FlowMaker) -> None:
    mac = set_field("eth_src", GATEWAY_MAC)
    answer_arp: tuple[Action, ...] = (
        Move("eth_src", "eth_dst"),
        mac,
        set_field("arp_op", 2),
        Move("arp_sha", "arp_tha"),
        set_field("arp_sha", GATEWAY_MAC),
        Move("arp_tpa", "reg0"),
        Move("arp_spa", "arp_tpa"),
        Move("reg0", "arp_spa"),
        Output(OFPP_IN_PORT),
    )
    make.add(Table.ARP_RESPONDER, Priority.DEFAULT, ARP_REQUEST, answer_arp)
    turn_round: tuple[Action, ...] = (
        Move("eth_src", "eth_dst"),
        mac,
        Move("ipv6_src", "ipv6_dst"),
        Move("nd_target", "ipv6_src"),
        set_field("icmpv6_type", 136),
    )
    make.add(
        Table.ND_RESPONDER, Priority.DEFAULT, NEIGHBOUR_SOLICITATION, turn_round, Table.ND_REPLY
    )
    answer_nd: tuple[Action, ...] = (
        set_field("nd_options_type", 2),
        SetField("nd_tll", mac_to_int(GATEWAY_MAC)),
        # Router, solicited, override.
        set_field("nd_reserved", 0xE0000000),
        Output(OFPP_IN_PORT),
    )
    make.add(Table.ND_REPLY, Priority.DEFAULT, NEIGHBOUR_ADVERTISEMENT, answer_nd)


def _conntrack(make: FlowMaker, context: SwitchContext) -> None:
    count_nobody(make)
    for family in FAMILIES:
        unsnat = Ct(Zone.HAIRPIN, table=Table.CONNTRACK, nat=Nat())
        make.add(Table.UNSNAT, Priority.EXACT, family.to(family.hairpin), (unsnat,))
        lookup = Ct(Zone.MAIN, table=Table.SERVICE_TRAFFIC, nat=Nat())
        make.add(Table.CONNTRACK, Priority.DEFAULT, family.any, (lookup,))
        make.add(Table.UNSNAT, Priority.DEFAULT, family.any, (), Table.CONNTRACK)
        _conntrack_state(make, family)
    for cidr in context.switch.pod_cidrs:
        # The client is a Pod of another node: routed like any other.
        back = with_fields(family_of(cidr).to(cidr), match(ct_mark=EXTERNAL_MARK.pair))
        back = with_fields(back, match(ct_state="+trk+rpl"))
        make.add(
            Table.CONNTRACK_STATE, Priority.EXACT + 5, back, (NO_IN_PORT,), Table.EGRESS_METRIC
        )
    for ip in context.switch.gateway_ips:
        unsnat = Ct(Zone.SERVICE_SNAT, table=Table.CONNTRACK, nat=Nat())
        for when in _from_beyond(context):
            there = with_fields(when, family_of(ip).to(ip))
            make.add(Table.UNSNAT, Priority.EXACT, there, (unsnat,))


def _conntrack_state(make: FlowMaker, family: Family) -> None:
    """One-way UDP stays +new, already translated: known by its mark, not by -new."""
    hairpin = with_fields(family.any, match(ct_mark=HAIRPIN_MARK.pair))
    service = with_fields(family.any, match(ct_mark=SERVICE.pair))

    def state(base: Match, text: str) -> Match:
        return with_fields(base, match(ct_state=text))

    external = with_fields(family.any, match(ct_mark=EXTERNAL_MARK.pair))
    snat = with_fields(family.any, match(ct_mark=SNAT_MARK.pair))
    table = Table.CONNTRACK_STATE
    make.add(table, Priority.GUARD, state(family.any, "+trk+inv"))
    # Not for a Service at all: what br-ext has passed on goes back to it, to the node.
    node = with_fields(state(family.any, "+trk+inv"), match(pkt_mark=EXTERNAL_PKT_MARK))
    make.add(table, Priority.GUARD + 5, node, (Output(OFPP_IN_PORT),))
    for kind in ("+trk+est-rpl", "+trk+rel-rpl"):
        make.add(table, Priority.LOCAL, state(snat, kind), (), Table.SERVICE_SNAT)
    make.add(table, Priority.LOCAL, state(external, "+trk+rpl"), _GO_BACK, Table.EGRESS_METRIC)
    make.add(table, Priority.EXACT, state(hairpin, "+trk-rpl"), (), Table.HAIRPIN)
    make.add(table, Priority.EXACT, state(hairpin, "+trk+rpl"), (), Table.HAIRPIN_OUTPUT)
    make.add(table, Priority.LOCAL - 1, state(family.any, "+trk+est"), (), Table.EGRESS_METRIC)
    make.add(table, Priority.RELATED, state(family.any, "+trk+rel"), (), Table.L3_FORWARD)
    make.add(table, Priority.FALLBACK, state(service, "+trk+new"), (), Table.EGRESS_SUBJECT)
    make.add(table, Priority.DEFAULT, state(family.any, "+trk+new"), (), Table.NODE_ADDRESS)


def _services(make: FlowMaker, context: SwitchContext) -> None:
    _node_addresses(make, context)
    _no_service(make, context)
    for family in FAMILIES:
        make.add(Table.ENDPOINT_SELECTED, Priority.MISS, family.any, (), Table.EGRESS_SUBJECT)
        commit = Ct(Zone.MAIN, commit=True, table=Table.L3_FORWARD)
        make.add(Table.COMMIT, Priority.DEFAULT, family.any, (commit,))
        direct, first = with_own_replies(family, commit)
        make.add(Table.COMMIT, Priority.DEFAULT + 1, direct, (first,))
        known = with_fields(family.any, match(ct_mark=SERVICE.pair))
        make.add(Table.COMMIT, Priority.EXACT, known, (), Table.L3_FORWARD)
        snat = with_fields(family.any, match(ct_mark=SNAT_MARK.pair))
        make.add(Table.COMMIT, Priority.EXACT + 5, snat, (), Table.SERVICE_SNAT)
    for ip in context.own_addresses:
        # The node calls a Service and is itself the endpoint.
        when = with_fields(match(in_port=context.switch.gateway_port), family_of(ip).to(ip))
        make.add(Table.ENDPOINT_SELECTED, Priority.LOCAL, when, (mark_hairpin(),))
    for when in _from_beyond(context):
        _distant_clients(make, context, when)
    _service_snat(make, context)


def _node_addresses(make: FlowMaker, context: SwitchContext) -> None:
    """What ServiceLB must know of this switch, so that its flows are the same on all of them."""
    switch = context.switch
    flags = HAS_SCTP.value if switch.sctp else 0
    flags |= NULL_NAT.value if switch.null_nat else 0
    known: tuple[Action, ...] = (set_field(FLAGS, flags),) if flags else ()
    if switch.zone:
        known += (set_field(ZONE_REG, zone_number(switch.zone)),)
    for family in FAMILIES:
        make.add(Table.NODE_ADDRESS, Priority.MISS, family.any, known, Table.SERVICE_LB)
    mark = set_field(FLAGS, flags | TO_NODE.value)
    for ip in switch.node_port_ips:
        when = family_of(ip).to(ip)
        make.add(Table.NODE_ADDRESS, Priority.EXACT, when, (*known, mark), Table.SERVICE_LB)


def _no_service(make: FlowMaker, context: SwitchContext) -> None:
    """
    What no ServicePort has taken.

    A cluster IP's other ports, and cluster IPs that are nobody's, refuse: they must not be
    committed as something else before their Service comes. The rest is marked, if it comes from
    this node: a Service may lead the same client and port to the same place (ADR 0044).
    """
    own = (set_field(FLAGS, OWN_REPLIES.pair),) if context.switch.null_nat else ()
    for family in FAMILIES:
        make.add(Table.SERVICE_LB, Priority.MISS, family.any, own, Table.EGRESS_SUBJECT)
        # Clients beyond this node have no connection by a Service here. Conntrack before 3.3.5,
        # 3.4.3 and 3.5.1 spoils ICMPv6 errors about connections with NAT.
        for when in _from_beyond(context) if own else ():
            beyond = with_fields(when, family.any)
            make.add(Table.SERVICE_LB, Priority.MISS + 1, beyond, (), Table.EGRESS_SUBJECT)
        outside = with_fields(family.any, match(pkt_mark=EXTERNAL_PKT_MARK))
        make.add(Table.SERVICE_LB, Priority.DROP, outside, (Output(OFPP_IN_PORT),))
    refuse = Controller(REJECT_MAX_LEN, REJECT_USERDATA)
    for cidr in context.switch.service_cidrs:
        for protocol in Protocol:
            when = with_fields(family_of(cidr).to(cidr), first_of(protocol))
            make.add(Table.SERVICE_LB, Priority.FALLBACK, when, (refuse,))


def _from_beyond(context: SwitchContext) -> list[Match]:
    """Packets from other nodes and from the world outside."""
    ports = filter(None, (context.switch.uplink_port, context.switch.tunnel_port))
    return [match(in_port=port) for port in ports]


def _distant_clients(make: FlowMaker, context: SwitchContext, beyond: Match) -> None:
    """
    A client beyond this node has been given an endpoint.

    Its address is kept where the endpoint answers through this switch: its own Pods, and the node
    itself if the client is a Pod of another node (the kernel routes Pods to the gateway port).
    """
    kept = (_note(EXTERNAL_MARK.value),)
    translated = (_note(EXTERNAL_MARK.value | SNAT_MARK.value),)
    table = Table.ENDPOINT_SELECTED
    for cidr in context.switch.local_cidrs:
        make.add(table, Priority.ROUTE, with_fields(beyond, family_of(cidr).to(cidr)), kept)
    for ip in context.own_addresses:
        here = with_fields(beyond, family_of(ip).to(ip))
        make.add(table, Priority.LOCAL, here, kept)
        outside = with_fields(here, match(pkt_mark=EXTERNAL_PKT_MARK))
        make.add(table, Priority.LOCAL + 5, outside, translated)
    for family in FAMILIES:
        make.add(table, Priority.DEFAULT, with_fields(beyond, family.any), translated)


def _note(bits: int) -> Ct:
    """Note in the committed connection how its packets go, and go on to policy."""
    return Ct(
        Zone.MAIN,
        commit=True,
        table=Table.EGRESS_SUBJECT,
        exec=(set_field("ct_mark", (bits, bits)),),
    )


def _service_snat(make: FlowMaker, context: SwitchContext) -> None:
    table = Table.SERVICE_SNAT
    for ip in context.own_addresses:
        # The node itself: it answers to this address through its gateway port.
        hairpin = family_of(ip).hairpin
        nat = Nat("src", hairpin, hairpin)
        here = Ct(Zone.HAIRPIN, commit=True, table=Table.L3_FORWARD, nat=nat)
        make.add(table, Priority.LOCAL, family_of(ip).to(ip), (here,))
    for family in FAMILIES:
        own = (ip for ip in context.switch.gateway_ips if ip.version == family.version)
        for ip in list(own)[:1]:
            # Ports that the node's kernel does not choose: its own connections have this address
            # too.
            nat = Nat("src", ip, ip, EXTERNAL_PORT_MIN, EXTERNAL_PORT_MAX)
            far = Ct(Zone.SERVICE_SNAT, commit=True, table=Table.L3_FORWARD, nat=nat)
            make.add(table, Priority.DEFAULT, family.any, (NO_IN_PORT, far))


def mark_hairpin() -> Ct:
    """Note in the committed connection that its endpoint is its client, and go on to Hairpin."""
    note = (set_field("ct_mark", HAIRPIN_MARK.pair),)
    return Ct(Zone.MAIN, commit=True, table=Table.HAIRPIN, exec=note)


def _forwarding(make: FlowMaker, context: SwitchContext) -> None:
    for ip in context.own_addresses:
        make.add(Table.L3_FORWARD, Priority.LOCAL, family_of(ip).to(ip), to_gateway(context))
    for family in FAMILIES:
        # Not to another node's switch, which knows nothing of the connection: to its kernel.
        as_is = with_fields(family.any, match(**{FLAGS: AS_IS.pair}))
        make.add(Table.L3_FORWARD, Priority.GUARD, as_is, (), Table.EXTERNAL)
        make.add(Table.L3_FORWARD, Priority.DEFAULT, family.any, (), Table.BEYOND)


def _beyond(make: FlowMaker, context: SwitchContext) -> None:
    """What no Pod, node or route has."""
    switch = context.switch
    inside = {*switch.local_cidrs, *switch.pod_cidrs, *switch.service_cidrs, *NEVER_ROUTED}
    for cidr in sorted(inside, key=_network_order):
        make.add(Table.BEYOND, Priority.DROP, family_of(cidr).to(cidr))
    for family in FAMILIES:
        # Only Pods and the node itself reach the world outside through this switch: nothing is in
        # transit.
        for port in filter(None, (switch.gateway_port, switch.uplink_port, switch.tunnel_port)):
            transit = with_fields(match(in_port=port), family.any)
            make.add(Table.BEYOND, Priority.DROP - 2, transit)
        make.add(Table.BEYOND, Priority.DEFAULT, family.any, (), Table.EXTERNAL)


def _hairpin(make: FlowMaker, context: SwitchContext) -> None:
    for family in FAMILIES:
        snat = Ct(
            Zone.HAIRPIN,
            commit=True,
            table=Table.HAIRPIN_OUTPUT,
            nat=Nat("src", family.hairpin, family.hairpin),
        )
        make.add(Table.HAIRPIN, Priority.DEFAULT, family.any, (snat,))
    for ip in context.own_addresses:
        back = to_gateway(context, OFPP_IN_PORT)
        make.add(Table.HAIRPIN_OUTPUT, Priority.LOCAL, family_of(ip).to(ip), back)


def _external(make: FlowMaker, context: SwitchContext) -> None:
    switch = context.switch
    for family in FAMILIES:
        address = context.address(family.version)
        if address is None or not switch.uplink_port:
            continue
        as_is = match(**{FLAGS: AS_IS.pair})
        for network in sorted({a.subnet for a in switch.addresses}, key=_network_order):
            if network.version == family.version:
                snat = _external_snat(address, Table.EXTERNAL_GATEWAY)
                make.add(Table.EXTERNAL, Priority.EXACT, family.to(network), (snat,))
                back = with_fields(family.to(network), as_is)
                make.add(Table.EXTERNAL, Priority.GUARD, back, (), Table.EXTERNAL_GATEWAY)
        hops = [hop for hop in switch.next_hops if hop.ip.version == family.version]
        out = Table.EXTERNAL_UPLINK if hops else Table.EXTERNAL_GATEWAY
        make.add(Table.EXTERNAL, Priority.LOCAL, with_fields(family.any, as_is), (), out)
        make.add(Table.EXTERNAL, Priority.DEFAULT, family.any, (_external_snat(address, out),))
        make.add(Table.EXTERNAL_GATEWAY, Priority.DEFAULT, family.any, to_gateway(context))
        for hop in hops[:1]:
            send = (DecTtl(), *deliver(switch.router_mac, hop.mac, switch.uplink_port))
            make.add(Table.EXTERNAL_UPLINK, Priority.DEFAULT, family.any, send)
        _external_reply(make, family)


def _external_snat(address: IPAddress, table: Table) -> Ct:
    nat = Nat("src", address, address, EXTERNAL_PORT_MIN, EXTERNAL_PORT_MAX)
    return Ct(Zone.EXTERNAL, commit=True, table=table, nat=nat)


def _external_reply(make: FlowMaker, family: Family) -> None:
    for state in ("+trk+rpl", "+trk+rel"):
        when = with_fields(family.any, match(ct_state=state))
        reply = (set_field("pkt_mark", 0),)
        make.add(Table.EXTERNAL_REPLY, Priority.EXACT, when, reply, Table.UNSNAT)
    # Not a Pod's: a Service's, or the node's.
    make.add(Table.EXTERNAL_REPLY, Priority.DEFAULT, family.any, (), Table.UNSNAT)


def _network_order(network: IPNetwork) -> tuple[int, int, int]:
    return (network.version, int(network.network_address), network.prefixlen)


NEVER_ROUTED: tuple[IPNetwork, ...] = (
    IPv4Network("224.0.0.0/4"),
    IPv4Network("255.255.255.255/32"),
    IPv4Network("169.254.0.0/16"),
    IPv6Network("fe80::/10"),
    IPv6Network("ff00::/8"),
)
