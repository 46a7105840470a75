"""Every fact, intent, acknowledgement and request on the bus: import from the modules here."""
