"""
The agent's side of CNI 1.1: what the executable brings is decoded here, and answered.

`wire` frames and decodes, `types` are the words, `result` renders for each cniVersion, `server`
listens and serialises per container. What ADD, DEL, CHECK, GC and STATUS do is behind the Protocol
`PodNetwork`.

Source: the CNI specification 1.1.0 (and 0.3.0 to 1.0.0 for the older result forms).
"""

from dunlin_agent.cni.server import CniServer, PodNetwork
from dunlin_agent.cni.types import (
    Attachment,
    CniError,
    CniErrorCode,
    CniRequest,
    Interface,
    IpConfig,
    NetConf,
    Result,
    Route,
)

__all__ = [
    "Attachment",
    "CniError",
    "CniErrorCode",
    "CniRequest",
    "CniServer",
    "Interface",
    "IpConfig",
    "NetConf",
    "PodNetwork",
    "Result",
    "Route",
]
