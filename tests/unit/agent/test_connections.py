"""Conntrack's entries as connections: as dpctl/dump-conntrack of OVS 3.1 prints them."""

from ipaddress import ip_address

from dunlin_agent.connections import connections

DUMP = """\
tcp,orig=(src=10.0.1.2,dst=10.96.0.9,sport=40001,dport=80),reply=(src=10.0.2.3,dst=10.0.1.2,\
sport=8080,dport=40001),zone=64000,mark=257,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.0.1.2,dst=10.0.2.3,sport=40002,dport=8080),reply=(src=10.0.2.3,dst=10.0.1.2,\
sport=8080,dport=40002),zone=64000,mark=256,labels=0x1,protoinfo=(state=ESTABLISHED)
tcp,orig=(src=10.0.1.2,dst=10.0.2.3,sport=40003,dport=8080),reply=(src=10.0.2.3,dst=10.0.1.2,\
sport=8080,dport=40003),zone=64000,protoinfo=(state=TIME_WAIT)
tcp,orig=(src=10.0.1.4,dst=10.0.2.3,sport=40003,dport=8080),reply=(src=10.0.2.3,dst=10.0.1.4,\
sport=8080,dport=40003),zone=64000,mark=4,protoinfo=(state=ESTABLISHED)
udp,orig=(src=fd00:1::2,dst=fd00:2::3,sport=5000,dport=53),reply=(src=fd00:2::3,dst=fd00:1::2,\
sport=53,dport=5000),zone=64000
icmp,orig=(src=10.0.1.2,dst=10.0.2.3,id=7,type=8,code=0),reply=(src=10.0.2.3,dst=10.0.1.2,id=7,\
type=0,code=0),zone=64000
icmpv6,orig=(src=fd00:1::2,dst=fd00:2::3,id=7,type=128,code=0),reply=(src=fd00:2::3,\
dst=fd00:1::2,id=7,type=129,code=0),zone=64000
something else
"""
CLIENT, SERVER = ip_address("10.0.1.2"), ip_address("10.0.2.3")
CLIENT6, SERVER6 = ip_address("fd00:1::2"), ip_address("fd00:2::3")


def test_live_ones_by_their_endpoint() -> None:
    """Through a Service or not; what is denied or ends is not live; what cannot be read is left."""
    assert connections(DUMP) == {
        ("TCP", CLIENT, SERVER, 8080): 2,
        ("UDP", CLIENT6, SERVER6, 53): 1,
        ("ICMP", CLIENT, SERVER, 0): 1,
        ("ICMP", CLIENT6, SERVER6, 0): 1,
    }


def test_only_those_that_are_asked_for() -> None:
    """Either end will do."""
    assert connections(DUMP, {SERVER6}).keys() == {
        ("UDP", CLIENT6, SERVER6, 53), ("ICMP", CLIENT6, SERVER6, 0),
    }  # fmt: skip
    assert not connections(DUMP, {ip_address("10.9.9.9")})
