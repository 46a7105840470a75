"""A Pod's interface: who it may say it is, and how it is reached on its node."""

from ipaddress import IPv6Network

from dunlin.events.intents import EndpointIntent
from dunlin.model.addresses import GATEWAY_MAC, IPAddress, IPNetwork
from dunlin.openflow.flow import OFPP_IN_PORT, Program, match, with_fields
from dunlin.pipeline.bandwidth import egress, ingress, meters
from dunlin.pipeline.base import FlowMaker, deliver
from dunlin.pipeline.families import family_of
from dunlin.pipeline.layout import Priority, Table
from dunlin.pipeline.switch import ARP, NEIGHBOUR_SOLICITATION, mark_hairpin

LINK_LOCAL = IPv6Network("fe80::/10")


def compile_endpoint(intent: EndpointIntent) -> Program:
    """Spoof guard, delivery, hairpin, meters of one interface; nothing without an OpenFlow port."""
    make = FlowMaker(intent.id)
    if not intent.ofport:
        return Program()
    for ip in intent.ips:
        _guard(make, intent, ip)
        _deliver(make, intent, ip)
        _fence(make, ip)
    if any(ip.version == 6 for ip in intent.ips):
        _neighbours(make, intent)
    return Program(tuple(make.flows), meters=meters(intent))


def _guard(make: FlowMaker, intent: EndpointIntent, ip: IPAddress) -> None:
    port = match(in_port=intent.ofport, eth_src=intent.mac)
    source = with_fields(port, family_of(ip).from_(ip))
    make.add(Table.CLASSIFIER, Priority.LOCAL, source, egress(intent), Table.UNSNAT)
    if ip.version == 4:
        who = match(in_port=intent.ofport, arp_spa=ip, arp_sha=intent.mac, arp_op=1)
        make.add(Table.CLASSIFIER, Priority.EXACT, with_fields(who, ARP), (), Table.ARP_RESPONDER)


def _fence(make: FlowMaker, ip: IPAddress) -> None:
    """Nothing passes until a PolicySubjectIntent, stronger than this, says which policies hold."""
    family = family_of(ip)
    make.add(Table.EGRESS_SUBJECT, Priority.DROP, family.from_(ip))
    make.add(Table.INGRESS_SUBJECT, Priority.DROP, family.to(ip))


def _neighbours(make: FlowMaker, intent: EndpointIntent) -> None:
    """Solicitations from its own or a link-local address; not from `::` (duplicate detection)."""
    port = match(in_port=intent.ofport, eth_src=intent.mac)
    sources: list[IPAddress | IPNetwork] = [LINK_LOCAL]
    sources += [ip for ip in intent.ips if ip.version == 6]
    for source in sources:
        when = with_fields(with_fields(port, NEIGHBOUR_SOLICITATION), match(ipv6_src=source))
        make.add(Table.CLASSIFIER, Priority.EXACT, when, (), Table.ND_RESPONDER)


def _deliver(make: FlowMaker, intent: EndpointIntent, ip: IPAddress) -> None:
    family = family_of(ip)
    there = family.to(ip)
    limit = ingress(intent)
    out = (*limit, *deliver(GATEWAY_MAC, intent.mac, intent.ofport))
    make.add(Table.L3_FORWARD, Priority.EXACT, there, out)
    itself = with_fields(there, family.from_(ip))
    make.add(Table.ENDPOINT_SELECTED, Priority.EXACT, itself, (mark_hairpin(),))
    back = (*limit, *deliver(GATEWAY_MAC, intent.mac, OFPP_IN_PORT))
    make.add(Table.HAIRPIN_OUTPUT, Priority.EXACT, there, back)
