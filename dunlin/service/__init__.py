"""What every service shares: settings, logs, metrics, the HTTP side, the supervisor of its tasks."""
