"""Address pools, node blocks, Pod addresses; emits endpoint intents."""
