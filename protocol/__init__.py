"""The archid wire protocol and documents, without I/O.

Nothing here imports trio, sockets, files, clocks or random sources: bytes go in, events and
bytes come out; time and randomness are arguments. ``SPEC.md`` beside this file is normative.
"""
