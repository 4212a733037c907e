"""Values as plain data and back: snapshots, events from outside, JSON."""
