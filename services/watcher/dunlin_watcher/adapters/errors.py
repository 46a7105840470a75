"""What can go wrong between the watcher and the Kubernetes API."""


class ApiError(Exception):
    """
    The API could not be read now; trying again later may help.

    `reason`: one fixed word for metrics. `retry_after_s`: no sooner than that, where the server
    says so.
    """

    reason = "error"

    def __init__(self, text: str, retry_after_s: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class UnavailableError(ApiError):
    """No connection, a broken one, or silence beyond the time allowed."""

    reason = "connection"


class RefusedError(ApiError):
    """The server said no: 401, 403, 429, 5xx …; `status` is the HTTP code."""

    def __init__(self, text: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(text, retry_after_s)
        self.status = status
        self.reason = f"http_{status}"


class NotServedError(RefusedError):
    """404: the server does not have this kind."""


class ExpiredError(ApiError):
    """410 or reason Expired: the resourceVersion or continue token is too old; list again."""

    reason = "expired"


class GarbageError(ApiError):
    """The answer does not parse as what it should be; list again."""

    reason = "garbage"
