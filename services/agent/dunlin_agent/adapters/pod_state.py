"""What a Pod interface is, against what it must be: the reading half of `links`, for CHECK."""

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from dunlin.model.addresses import IPAddress
from dunlin_agent.adapters import rtnetlink as rt
from dunlin_agent.adapters.ethtool import FeatureSocket

if TYPE_CHECKING:
    from dunlin_agent.adapters.links import PodLink

IFF_UP: Final = 1
NUD_PERMANENT: Final = 0x80
RT_TABLE_MAIN: Final = 254


class Difference(NamedTuple):
    """One thing that is not as it must be: `what` is a name, the rest are for people."""

    what: str
    expected: str
    actual: str

    def __str__(self) -> str:
        """One clause of CHECK's error."""
        return f"{self.what}: expected {self.expected}, found {self.actual}"


def differences(
    link: "PodLink", pod: rt.Rtnetlink, features: FeatureSocket
) -> tuple[Difference, ...]:
    """Compare link, addresses, neighbours, routes and offloads inside the Pod."""
    found = pod.link(link.ifname)
    if found is None:
        return (Difference("interface", link.ifname, "missing"),)
    index: int = found["index"]
    return (
        *_link(link, found),
        *_addresses(link, pod, index),
        *_neighbours(link, pod, index),
        *_routes(link, pod, index),
        *_features(link, features),
    )


def _link(link: "PodLink", found: Any) -> Iterator[Difference]:
    attrs = rt.attributes(found)
    if attrs["IFLA_ADDRESS"] != link.mac:
        yield Difference("MAC address", link.mac, attrs["IFLA_ADDRESS"])
    if attrs["IFLA_MTU"] != link.mtu_bytes:
        yield Difference("MTU", str(link.mtu_bytes), str(attrs["IFLA_MTU"]))
    if not found["flags"] & IFF_UP:
        yield Difference("state", "up", "down")


def _addresses(link: "PodLink", pod: rt.Rtnetlink, index: int) -> Iterator[Difference]:
    """Each address is there; others (the kernel's link-local, the user's own) are none of ours."""
    present = set()
    for message in pod.dump(rt.RTM_GETADDR, rt.address_message()):
        attrs = rt.attributes(message)
        if message["index"] == index:
            text = attrs.get("IFA_LOCAL", attrs["IFA_ADDRESS"])
            present.add(ip_interface(f"{text}/{message['prefixlen']}"))
    for ip in link.ips:
        wanted = ip_interface(ip)
        if wanted not in present:
            yield Difference("address", str(wanted), _listed(present))


def _neighbours(link: "PodLink", pod: rt.Rtnetlink, index: int) -> Iterator[Difference]:
    permanent: dict[IPAddress, str] = {}
    for message in pod.dump(rt.RTM_GETNEIGH, rt.neighbour_message()):
        attrs = rt.attributes(message)
        if message["ifindex"] == index and message["state"] & NUD_PERMANENT:
            permanent[ip_address(attrs["NDA_DST"])] = attrs.get("NDA_LLADDR", "")
    for gateway in link.gateways:
        mac = permanent.get(gateway, "none")
        if mac != link.gateway_mac:
            yield Difference(f"permanent neighbour {gateway}", link.gateway_mac, mac)


def _routes(link: "PodLink", pod: rt.Rtnetlink, index: int) -> Iterator[Difference]:
    on_link: set[IPAddress] = set()
    default: set[IPAddress] = set()
    for message in pod.dump(rt.RTM_GETROUTE, rt.route_message()):
        attrs = rt.attributes(message)
        if attrs.get("RTA_OIF") != index or attrs.get("RTA_TABLE") != RT_TABLE_MAIN:
            continue
        if message["dst_len"] == 0 and "RTA_GATEWAY" in attrs:
            default.add(ip_address(attrs["RTA_GATEWAY"]))
        elif "RTA_DST" in attrs and "RTA_GATEWAY" not in attrs:
            on_link.add(ip_address(attrs["RTA_DST"]))
    for gateway in link.gateways:
        if gateway not in on_link:
            yield Difference("on-link route", str(gateway), _listed(on_link))
        if gateway not in default:
            what = f"default route (IPv{gateway.version})"
            yield Difference(what, str(gateway), _listed(default))


def _features(link: "PodLink", features: FeatureSocket) -> Iterator[Difference]:
    for name in sorted(features.enabled(link.ifname, link.features_off)):
        yield Difference(f"offload {name}", "off", "on")


def _listed(items: set[Any]) -> str:
    return ", ".join(sorted(map(str, items))) or "none"
