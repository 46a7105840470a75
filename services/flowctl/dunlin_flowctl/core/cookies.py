"""Which intent a flow of a switch comes from."""

from collections.abc import Iterable, Mapping

from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import cookie_of


class CookiesOn:
    """
    Cookie -> intent id, for one switch.

    `everywhere` is shared by all switches and goes on changing; `own`: ids of this switch's node.
    To make one costs what the node has, whatever there is in the cluster.
    """

    def __init__(self, everywhere: Mapping[int, IntentId], own: Iterable[IntentId]) -> None:
        self._everywhere = everywhere
        self._own = {cookie_of(intent_id): intent_id for intent_id in own}

    def lookup(self, cookie: int) -> IntentId | None:
        """The intent of a cookie, if it is known."""
        return self._own.get(cookie) or self._everywhere.get(cookie)
