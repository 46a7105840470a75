"""The message bus: a Protocol, one implementation in memory and one on NATS JetStream."""
