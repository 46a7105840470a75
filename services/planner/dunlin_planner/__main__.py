"""`python -m dunlin_planner`."""

from dunlin.service.app import ServiceApp, run_service
from dunlin_planner.app import setup
from dunlin_planner.config import PlannerSettings


async def _setup(app: ServiceApp[PlannerSettings]) -> None:
    await setup(app)


def main() -> None:
    """Run the service until SIGTERM."""
    run_service("planner", PlannerSettings, _setup, title="Dunlin planner")


if __name__ == "__main__":
    main()
