"""What every service shares: settings, logs, metrics, HTTP, the supervisor of its tasks."""

from dunlin.imports import absent

# rich, where it is installed for the command line, only colours tracebacks: 100 ms of every start.
with absent("rich"):
    import structlog as structlog
