"""Which intent a flow of a switch comes from."""

from collections.abc import Iterable

from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import CookieIndex


class CookiesOn:
    """
    Cookie -> intent id, for one switch.

    `everywhere` is shared by all switches and goes on changing; `own`: ids of this switch's node.
    To make one costs what the node has, whatever there is in the cluster.
    """

    def __init__(self, everywhere: CookieIndex, own: Iterable[IntentId]) -> None:
        self._everywhere = everywhere
        self._own = CookieIndex(own)

    def lookup(self, cookie: int) -> IntentId | None:
        """The intent of a cookie, if it is known."""
        return self._own.lookup(cookie) or self._everywhere.lookup(cookie)
