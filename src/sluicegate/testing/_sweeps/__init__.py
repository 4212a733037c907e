"""The sweep, the fuzz and virtual time: for any Trio, AnyIO or asyncio program; no workflows here."""
