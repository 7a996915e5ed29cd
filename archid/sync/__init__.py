"""Runs the protocol's machines: follows heads, answers peers and fetches what is wanted."""
