"""
The rules that kube-proxy writes for ClusterIP Services, for `iptables-restore` and `nft -f`.

Its chains and their order, after kubernetes pkg/proxy/iptables and pkg/proxy/nftables (1.33): the
same Services as ours, IPv4, TCP and UDP, policy Cluster, no affinity. A packet walks what it would
walk on a node with kube-proxy; chains that only node ports, load balancers and firewalls use are
there and empty, as they are on such a node.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

LARGE = 1000
"""Endpoints from which on kube-proxy leaves the comments out of its iptables rules."""
TRANSACTION = 500
"""ServicePorts in one transaction of nftables."""


@dataclass(frozen=True, slots=True)
class Port:
    """A ServicePort. `protocol`: tcp or udp; `endpoints`: addresses, all at `target`."""

    service: str
    name: str
    protocol: str
    address: str
    port: int
    endpoints: Sequence[str]
    target: int

    @property
    def key(self) -> str:
        """namespace/service:port."""
        return f"{self.service}:{self.name}"


def iptables(ports: Sequence[Port], pod_cidr: str) -> str:
    """Tables filter and nat, for `iptables-restore`."""
    comments = sum(len(port.endpoints) for port in ports) <= LARGE
    rules = [line for port in ports for line in _iptables_port(port, pod_cidr, comments=comments)]
    services = [_iptables_frontend(port, comments=comments) for port in ports]
    chains = [f":{name} - [0:0]" for port in ports for name in _chains(port)]
    last = "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    nat = [*_NAT, *chains, *_NAT_RULES, *rules, *services, last]
    return "\n".join([*_FILTER, "COMMIT", *nat, "COMMIT", ""])


def _hash(*words: str) -> str:
    """As kube-proxy names chains: base32 of SHA-256."""
    return base64.b32encode(hashlib.sha256("".join(words).encode()).digest()).decode()


def _service_chain(port: Port) -> str:
    return f"KUBE-SVC-{_hash(port.key, port.protocol)[:16]}"


def _endpoint_chain(port: Port, address: str) -> str:
    return f"KUBE-SEP-{_hash(port.key, port.protocol, f'{address}:{port.target}')[:16]}"


def _chains(port: Port) -> Iterator[str]:
    yield _service_chain(port)
    for address in port.endpoints:
        yield _endpoint_chain(port, address)


def _iptables_frontend(port: Port, *, comments: bool) -> str:
    return (
        f"-A KUBE-SERVICES {_comment(f'{port.key} cluster IP', wanted=comments)}"
        f"{_to(port)} -j {_service_chain(port)}"
    )


def _iptables_port(port: Port, pod_cidr: str, *, comments: bool) -> Iterator[str]:
    chain, count = _service_chain(port), len(port.endpoints)
    about = _comment(f"{port.key} cluster IP", wanted=comments)
    yield f"-A {chain} {about}{_to(port)} ! -s {pod_cidr} -j KUBE-MARK-MASQ"
    for number, address in enumerate(port.endpoints):
        left = count - number
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        about = _comment(f"{port.key} -> {address}:{port.target}", wanted=comments)
        yield f"-A {chain} {about}{chance}-j {_endpoint_chain(port, address)}"
    about = _comment(port.key, wanted=comments)
    for address in port.endpoints:
        chain = _endpoint_chain(port, address)
        yield f"-A {chain} {about}-s {address}/32 -j KUBE-MARK-MASQ"
        yield (
            f"-A {chain} {about}-p {port.protocol} -m {port.protocol} "
            f"-j DNAT --to-destination {address}:{port.target}"
        )


def _comment(text: str, *, wanted: bool) -> str:
    return f'-m comment --comment "{text}" ' if wanted else ""


def _to(port: Port) -> str:
    return f"-d {port.address}/32 -p {port.protocol} -m {port.protocol} --dport {port.port}"


_NEW = "-m conntrack --ctstate NEW"
_FILTER = (
    "*filter",
    *(
        f":KUBE-{name} - [0:0]"
        for name in (
            "NODEPORTS",
            "SERVICES",
            "EXTERNAL-SERVICES",
            "FIREWALL",
            "FORWARD",
            "PROXY-FIREWALL",
        )
    ),
    f"-A INPUT {_NEW} -j KUBE-PROXY-FIREWALL",
    "-A INPUT -j KUBE-NODEPORTS",
    f"-A INPUT {_NEW} -j KUBE-EXTERNAL-SERVICES",
    "-A INPUT -j KUBE-FIREWALL",
    f"-A FORWARD {_NEW} -j KUBE-PROXY-FIREWALL",
    "-A FORWARD -j KUBE-FORWARD",
    f"-A FORWARD {_NEW} -j KUBE-SERVICES",
    f"-A FORWARD {_NEW} -j KUBE-EXTERNAL-SERVICES",
    f"-A OUTPUT {_NEW} -j KUBE-PROXY-FIREWALL",
    f"-A OUTPUT {_NEW} -j KUBE-SERVICES",
    "-A OUTPUT -j KUBE-FIREWALL",
    "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
    "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)
_NAT = (
    "*nat",
    *(f":KUBE-{name} - [0:0]" for name in ("SERVICES", "NODEPORTS", "POSTROUTING", "MARK-MASQ")),
)
_NAT_RULES = (
    "-A PREROUTING -j KUBE-SERVICES",
    "-A OUTPUT -j KUBE-SERVICES",
    "-A POSTROUTING -j KUBE-POSTROUTING",
    "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
)


def nftables(ports: Sequence[Port], pod_cidr: str, service_cidr: str) -> Iterator[str]:
    """
    Table `ip kube-proxy`: one vmap finds the Service, another its endpoint. Texts for `nft -f`.

    Several transactions, for one takes the kernel a time that grows with the square of its sets.
    """
    frame = (
        _nft_set("set cluster-ips", "ipv4_addr"),
        _nft_set("set nodeport-ips", "ipv4_addr"),
        _nft_set("map firewall-ips", _TO_VERDICT),
        _nft_set("map no-endpoint-services", _TO_VERDICT),
        _nft_set("map no-endpoint-nodeports", "inet_proto . inet_service : verdict"),
        _nft_set("map service-nodeports", "inet_proto . inet_service : verdict"),
        _nft_set("map service-ips", _TO_VERDICT),
        _NFT_CHAINS.format(service_cidr=service_cidr),
    )
    yield _nft_table(*frame)
    for first in range(0, len(ports), TRANSACTION):
        some = ports[first : first + TRANSACTION]
        vmap = (f"{p.address} . {p.protocol} . {p.port} : goto {_nft_service(p)}" for p in some)
        yield _nft_table(
            _nft_set("set cluster-ips", "ipv4_addr", sorted({port.address for port in some})),
            *(_nft_port(port, pod_cidr) for port in some),
            _nft_set("map service-ips", _TO_VERDICT, vmap),
        )


def _nft_table(*content: str) -> str:
    return "\n".join(("table ip kube-proxy {", *content, "}", ""))


_TO_VERDICT = "ipv4_addr . inet_proto . inet_service : verdict"


def _nft_set(head: str, kind: str, elements: Iterable[str] = ()) -> str:
    held = ",\n    ".join(elements)
    content = f"; elements = {{\n    {held}\n  }}" if held else ";"
    return f"  {head} {{ type {kind}{content}\n  }}"


def _nft_service(port: Port) -> str:
    name = f"{port.service}/{port.protocol}/{port.name}"
    return f"service-{_hash(port.key, port.protocol)[:8]}-{name}"


def _nft_endpoint(port: Port, address: str) -> str:
    words = _hash(port.key, port.protocol, f"{address}:{port.target}")[:8]
    name = f"{port.service}/{port.protocol}/{port.name}"
    return f"endpoint-{words}-{name}__{address}/{port.target}"


def _nft_port(port: Port, pod_cidr: str) -> str:
    chains = [
        f"  chain {_nft_endpoint(port, address)} {{\n"
        f"    ip saddr {address} jump mark-for-masquerade\n"
        f"    meta l4proto {port.protocol} dnat to {address}:{port.target}\n  }}\n"
        for address in port.endpoints
    ]
    choice = ", ".join(
        f"{i} : goto {_nft_endpoint(port, address)}" for i, address in enumerate(port.endpoints)
    )
    return (
        f"{''.join(chains)}  chain {_nft_service(port)} {{\n"
        f"    ip daddr {port.address} ip saddr != {pod_cidr} jump mark-for-masquerade\n"
        f"    numgen random mod {len(port.endpoints)} vmap {{ {choice} }}\n  }}\n"
    )


_NFT_CHAINS = """
  chain mark-for-masquerade {{ mark set mark or 0x4000; }}
  chain masquerading {{
    mark and 0x4000 == 0 return
    mark set mark xor 0x4000
    masquerade fully-random
  }}
  chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
  chain service-endpoints-check {{
    ip daddr . meta l4proto . th dport vmap @no-endpoint-services
  }}
  chain nodeport-endpoints-check {{
    ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
  }}
  chain cluster-ips-check {{
    ip daddr @cluster-ips reject
    ip daddr {{ {service_cidr} }} drop
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
  }}
  chain filter-prerouting-pre-dnat {{
    type filter hook prerouting priority -110; ct state new jump firewall-check
  }}
  chain filter-output-pre-dnat {{
    type filter hook output priority -110; ct state new jump firewall-check
  }}
  chain filter-forward {{
    type filter hook forward priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain filter-input {{
    type filter hook input priority 0
    ct state new jump nodeport-endpoints-check
    ct state new jump service-endpoints-check
  }}
  chain filter-output {{
    type filter hook output priority 0
    ct state new jump service-endpoints-check
    ct state new jump cluster-ips-check
  }}
  chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}"""
