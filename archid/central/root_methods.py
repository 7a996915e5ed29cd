"""The control methods by which a person with the root keys replaces keys or begins an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archid.central.root_desk import RootDesk
from archid.central.rotation import RootChange
from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller
from archid.errors import UsageError
from protocol.envelope import PublicKey


class RootMethods:
    """Handlers over one `RootDesk`."""

    def __init__(self, desk: RootDesk) -> None:
        self._desk = desk

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {"root.prepare": self.prepare, "root.install": self.install}

    async def prepare(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        change = RootChange(
            roles=frozenset(params["roles"]),
            new_ca=params["ca"],
            drop_old_cas=params["drop_old_cas"],
            new_epoch=params["epoch"],
            at_once=params["at_once"],
            root_keys=tuple(PublicKey(bytes.fromhex(key)) for key in params["root_keys"]),
        )
        return await self._desk.prepare(change, by=caller.user_name)

    async def install(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        try:
            envelope = bytes.fromhex(params["envelope"])
        except ValueError as error:
            raise UsageError("The signed Root is not hexadecimal") from error
        return await self._desk.install(envelope, by=caller.user_name)
