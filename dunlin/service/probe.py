"""
What a container's health check runs: `python -m dunlin.service.probe [/healthz]`.

Asks this container's own service, whose address and port are in the environment. Exit code 0 for an
answer of 200, else 1 with the reason. The standard library alone: it runs every few seconds.
"""

import http.client
import os
import sys

TIMEOUT_S = 3.0
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - read, not bound


def problem(host: str, port: int, path: str) -> str:
    """Why the service is not well; "" when it is."""
    connection = http.client.HTTPConnection(ANY.get(host, host), port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        text = response.read(2000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{path}: {error}"
    finally:
        connection.close()
    return "" if response.status == http.HTTPStatus.OK else f"{path}: {response.status} {text}"


def main(argv: list[str]) -> int:
    """The exit code."""
    path = argv[1] if len(argv) > 1 else "/healthz"
    host = os.environ.get("DUNLIN_API_HOST", "127.0.0.1")
    reason = problem(host, int(os.environ.get("DUNLIN_API_PORT", "0")), path)
    if reason:
        print(reason, file=sys.stderr)  # noqa: T201 - for `docker inspect` and kubectl describe
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
