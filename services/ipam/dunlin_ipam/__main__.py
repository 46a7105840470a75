"""`python -m dunlin_ipam`."""

from dunlin.service.app import ServiceApp, run_service
from dunlin_ipam.app import setup
from dunlin_ipam.config import IpamSettings


async def _setup(app: ServiceApp[IpamSettings]) -> None:
    await setup(app)


def main() -> None:
    """Run the service until SIGTERM."""
    run_service("ipam", IpamSettings, _setup, title="Dunlin ipam")


if __name__ == "__main__":
    main()
