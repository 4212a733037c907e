"""The engine: a synchronous machine that knows what may happen, and a runner that does it."""
