"""
A Pod's hostPort: a port of its node's own addresses that leads to it. ADR 0041.

One flow of ServiceLB for each address, on that node alone; below those of Services, which come
first as kube-proxy's rules do. Everything after that is as for a NodePort with one endpoint here.
"""

from collections.abc import Iterable

from dunlin.events.facts import Protocol
from dunlin.events.intents import HostPortIntent
from dunlin.model.addresses import IPAddress
from dunlin.openflow.flow import Ct, Nat, Program, match, set_field, with_fields
from dunlin.pipeline.base import FlowMaker, SwitchContext
from dunlin.pipeline.families import family_of
from dunlin.pipeline.layout import FLAGS, HAS_SCTP, SERVICE, Priority, Table, Zone


def host_port_ips(intent: HostPortIntent, own: Iterable[IPAddress]) -> tuple[IPAddress, ...]:
    """Where it is served; `own`: every address of the node, its gateway addresses too."""
    versions = {endpoint.ip.version for endpoint in intent.endpoints}
    wanted = (ip for ip in own if intent.host_ip in (None, ip))
    return tuple(ip for ip in wanted if ip.version in versions)


def compile_host_port(intent: HostPortIntent, context: SwitchContext) -> Program:
    """Its flows on its own node; an address that is not the node's has none."""
    make = FlowMaker(intent.id)
    # As of Services: only where this Open vSwitch tracks SCTP ports.
    sctp = intent.protocol is Protocol.SCTP
    gate = match(**{FLAGS: HAS_SCTP.pair}) if sctp else ()
    for ip in host_port_ips(intent, context.own_addresses):
        endpoint = next(e for e in intent.endpoints if e.ip.version == ip.version)
        nat = Nat("dst", endpoint.ip, endpoint.ip, endpoint.port, endpoint.port)
        note = (set_field("ct_mark", SERVICE.pair),)
        to_pod = Ct(Zone.MAIN, commit=True, table=Table.ENDPOINT_SELECTED, nat=nat, exec=note)
        when = family_of(ip).first_to_port(ip, intent.protocol, intent.port)
        make.add(Table.SERVICE_LB, Priority.ROUTE, with_fields(when, gate), (to_pod,))
    return Program(tuple(make.flows))
