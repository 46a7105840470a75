"""`python -m dunlin_flowctl`."""

from dunlin.service.app import ServiceApp, run_service
from dunlin_flowctl.app import setup
from dunlin_flowctl.config import FlowctlSettings


async def _setup(app: ServiceApp[FlowctlSettings]) -> None:
    await setup(app)


def main() -> None:
    """Run the service until SIGTERM."""
    run_service("flowctl", FlowctlSettings, _setup, title="Dunlin flowctl")


if __name__ == "__main__":
    main()
