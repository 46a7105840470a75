"""Owns the OpenFlow sessions: compiles intents, writes, acknowledges."""
