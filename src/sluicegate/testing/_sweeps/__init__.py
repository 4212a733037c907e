"""Sweeps, fuzzing and virtual time, for any Trio, AnyIO or asyncio program. Knows no workflows."""
