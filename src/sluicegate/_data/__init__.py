"""Values as plain data and back.

* ``codec`` keeps values with their types for snapshots. ``encoders`` has its table, ``builtins`` the
  built-in types, ``classes`` the classes with fields, each described by a ``form``.
* ``from_outside`` makes events of data from outside; ``data_fields`` has the fields that data can set.
* ``json`` writes events for readers outside, and the JSON Schema of event classes.
* ``pydantic`` has everything about pydantic's classes, ``refusals`` the errors, and ``fields`` the
  declared fields for the state store.
"""
