"""``make demo``: a real fleet on this machine, a release reaching one cinema, and the proof.

Every node is an `archid` process of its own, set up with the `archid` command. What is claimed at
the end was looked at from outside: files by their SHA-256, refusals by asking with a node's key.
"""
