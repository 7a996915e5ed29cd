"""Tests of the demo's own parts: a demo that cannot fail would prove nothing."""
