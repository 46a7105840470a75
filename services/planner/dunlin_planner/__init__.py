"""Pod connectivity, routes, Services and policies: facts to intents."""
