"""Hypothesis without a deadline: it would measure how busy the machine is, not the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("archid", deadline=None)
settings.load_profile("archid")
