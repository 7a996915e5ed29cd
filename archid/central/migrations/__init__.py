"""The history of central's database schema, run from code by `archid.central.store`."""
