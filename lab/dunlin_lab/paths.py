"""
The names of everything a lab owns, all derived from the lab's name.

`down` finds a lab's things again by these names alone, so two labs must never share one, and a name
of one lab must never look like a name of another. Both hold: what follows `dl-NAME-` is one of four
closed forms, none of which ends in another after a dash.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dunlin_lab import netns

DEFAULT_NAME = "dunlin"
DEFAULT_ROOT = Path("/run/dunlin-lab")
ROOT_ENV = "DUNLIN_LAB_ROOT"

NODES_MAX = 200
"""Nodes of one lab: node i has host number 10 + i in /24 subnets."""

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?")
_NETNS_FORMS = r"n[1-9][0-9]{0,2}|p-[0-9a-f]{10}|outside|fabric"
# A unix socket's path is at most 107 bytes; the longest below a run directory is an OVS ctl socket.
_RUN_DIR_BYTES_MAX = 107 - len("/ovs/n200/ovs-vswitchd.4194304.ctl")


class LabNameError(ValueError):
    """The lab's name or root directory cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class LabPaths:
    """Every file, namespace and link name of one lab."""

    name: str
    root: Path

    @classmethod
    def named(cls, name: str = DEFAULT_NAME, root: Path | None = None) -> LabPaths:
        """
        The lab of that name under `root`, else $DUNLIN_LAB_ROOT, else /run/dunlin-lab.

        Raises:
            LabNameError: not 1 … 20 of a-z, 0-9, inner dashes; or a path too long for sockets.
        """
        if not _NAME.fullmatch(name):
            raise LabNameError(f"lab name {name!r}: use 1 to 20 of a-z, 0-9 and dashes inside")
        chosen = root or Path(os.environ.get(ROOT_ENV) or DEFAULT_ROOT)
        paths = cls(name, chosen.absolute())
        if len(os.fsencode(paths.run_dir)) > _RUN_DIR_BYTES_MAX:
            raise LabNameError(
                f"lab {name}: run directory {paths.run_dir} is longer than {_RUN_DIR_BYTES_MAX} "
                f"bytes, too long for unix sockets below it; set {ROOT_ENV} to a shorter path"
            )
        return paths

    # Files

    @property
    def run_dir(self) -> Path:
        """Everything of this lab that is a file."""
        return self.root / self.name

    @property
    def journal(self) -> Path:
        """What this lab has made outside its run directory, written before it is made."""
        return self.run_dir / "journal.jsonl"

    @property
    def state(self) -> Path:
        """The lab as `up` left it (state.LabState)."""
        return self.run_dir / "lab.json"

    @property
    def lock(self) -> Path:
        """Held by whoever changes the lab. Beside the run directory, which `down` removes."""
        return self.root / f".{self.name}.lock"

    @property
    def processes(self) -> Path:
        """One record for each process (procs.Processes)."""
        return self.run_dir / "proc"

    @property
    def sandboxes(self) -> Path:
        """One record for each Pod sandbox (kubelet)."""
        return self.run_dir / "sandboxes"

    @property
    def logs(self) -> Path:
        """Standard output and error of every process."""
        return self.run_dir / "log"

    @property
    def temporary(self) -> Path:
        """TMPDIR of every process: what one leaves that was killed goes with the lab."""
        return self.run_dir / "tmp"

    @property
    def kubeconfig(self) -> Path:
        """Where `up` puts the kubeconfig."""
        return self.run_dir / "kubeconfig"

    @property
    def hugepages(self) -> Path:
        """Our own hugetlbfs mount, so that the machine's is neither needed nor touched."""
        return self.run_dir / "huge"

    @property
    def responder_socket(self) -> Path:
        """Control socket of the responder."""
        return self.run_dir / "responder.sock"

    def agent_socket(self, node: str) -> Path:
        """Where a node's CNI executable finds its agent."""
        return self.run_dir / "agent" / f"{node}.sock"

    def ovs(self, node: str) -> Path:
        """Database, sockets, pids and logs of one node's OVS: its OVS_RUNDIR."""
        return self.run_dir / "ovs" / node

    # Network namespaces

    def node_netns(self, node: str) -> str:
        """The node's namespace; `node` is a node_name()."""
        return self._netns(node)

    def pod_netns(self, container_id: str) -> str:
        """The namespace of a Pod sandbox, from the first ten hex digits of its container id."""
        return self._netns(f"p-{container_id[:10]}")

    @property
    def outside_netns(self) -> str:
        """The world beyond the cluster."""
        return self._netns("outside")

    @property
    def fabric_netns(self) -> str:
        """The switch between the nodes."""
        return self._netns("fabric")

    def owns_netns(self, name: str) -> bool:
        """True for names that only this lab gives."""
        return bool(re.fullmatch(rf"dl-{re.escape(self.name)}-({_NETNS_FORMS})", name))

    def _netns(self, form: str) -> str:
        name = f"dl-{self.name}-{form}"
        if not self.owns_netns(name):
            raise LabNameError(f"lab {self.name}: {form!r} is not a node, Pod, outside or fabric")
        return name

    # Links in the host's namespace

    @property
    def digest(self) -> str:
        """Eight hex digits for names that must be short."""
        return hashlib.sha256(self.name.encode()).hexdigest()[:8]

    @property
    def mgmt_bridge(self) -> str:
        """The management bridge on the host."""
        return f"dlb-{self.digest}"

    def mgmt_port(self, index: int) -> str:
        """The host's end of node `index`'s management veth: at most 15 characters."""
        return f"dlm{self.digest}n{index}"

    def owns_link(self, ifname: str) -> bool:
        """True for link names that only this lab gives."""
        return bool(re.fullmatch(rf"dlb-{self.digest}|dlm{self.digest}n[0-9]{{1,3}}", ifname))


def node_name(index: int) -> str:
    """
    Kubernetes name of the node with that index.

    Raises:
        LabNameError: not 1 … NODES_MAX.
    """
    if not 1 <= index <= NODES_MAX:
        raise LabNameError(f"node {index}: a lab has nodes 1 to {NODES_MAX}")
    return f"n{index}"


def netns_path(name: str) -> Path:
    """The file that setns() takes for a named namespace."""
    return netns.path_of(name)
