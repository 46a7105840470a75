"""One file for each outside world: the kernel's links and routes, OVSDB, vswitchd's socket."""
