"""``python -m archid`` is the `archid` command."""

from archid.cli.main import main

main()
