"""The pure ipam: what to write to the ledger, and which endpoint intents follow from it."""
