"""The `archid` command."""
