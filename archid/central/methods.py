"""Central's methods of the control socket, besides those that every node has.

Each takes what the schema lets through, calls the service, and shapes the answer; decisions are
the service's. Publishing, which is a dialogue, has a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from archid.central.estate import Place
from archid.central.fleet_view import FleetView
from archid.central.publish_dialogue import PublishDialogue
from archid.central.release_plan import ReleasePlan
from archid.central.releases import detail_json, summary_json
from archid.central.service import CentralService
from archid.control.connection import Exchange, Handler
from archid.control.credentials import Caller


class CentralMethods:
    """Handlers over one `CentralService`."""

    def __init__(self, service: CentralService, publish: PublishDialogue, view: FleetView) -> None:
        self._service = service
        self._publish = publish
        self._view = view

    def handlers(self) -> Mapping[str, Handler]:
        """By method name, as `ControlServer` takes them."""
        return {
            "fleet": self.fleet,
            "publish": self._publish,
            "release.apply": self.apply_release,
            "release.list": self.list_releases,
            "release.show": self.show_release,
            "release.withdraw": self.withdraw_release,
            "revoke": self.revoke,
            "token.create": self.create_token,
            "token.list": self.list_tokens,
            "trust_database": self.trust_database,
            "why": self.why,
        }

    async def apply_release(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        definition, source = params["definition"], params["filename"]
        if not params["sign"]:
            plan = await self._service.plan_release(definition, source=source)
            return self._plan_json(plan, signed=False)
        expected = bytes.fromhex(params["plan"]) if params["plan"] else None
        plan = await self._service.apply_release(
            definition,
            source=source,
            by=caller.user_name,
            expected=expected,
            # Whoever sends back the digest of a plan has seen what it takes away.
            confirm=expected is not None,
        )
        return self._plan_json(plan, signed=True)

    def _plan_json(self, plan: ReleasePlan, *, signed: bool) -> dict[str, Any]:
        head = self._head_json() if signed else None
        return {**plan.to_json(), "signed": signed, "head": head}

    def _head_json(self) -> dict[str, int]:
        epoch, serial = self._service.state.order
        return {"epoch": epoch, "serial": serial}

    async def list_releases(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return {"releases": [summary_json(one) for one in await self._service.releases()]}

    async def show_release(
        self, _caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        release = await self._service.release(params["release"])
        shown = detail_json(release, lambda node: self._view.standing(node, release.release))
        return {**shown, "rooms": await self._view.rooms(release)}

    async def withdraw_release(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        taken = await self._service.withdraw_release(
            params["release"], confirm=params["confirm"], by=caller.user_name
        )
        return {
            "release": taken.release.hex(),
            "name": taken.name,
            "servers": sorted(server.name for server in taken.servers.values()),
            "head": self._head_json(),
        }

    async def revoke(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        node = await self._service.membership.remove_node(
            params["node"], confirm=params["confirm"], by=caller.user_name
        )
        return {
            "node": node.node.hex(),
            "name": node.name,
            "role": node.place.role,
            "head": self._head_json(),
        }

    async def trust_database(
        self, caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        await self._service.trust_database(by=caller.user_name)
        return {"head": self._head_json()}

    async def fleet(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return await self._view.fleet()

    async def why(
        self, _caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return await self._view.why(params["node"], params["release"])

    async def create_token(
        self, caller: Caller, params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        place = Place(params["role"], params["site"], params["room"], params["server_kind"])
        made = await self._service.membership.create_token(
            place, name=params["name"], lifetime_s=params["lifetime_s"], by=caller.user_name
        )
        return made.to_json()

    async def list_tokens(
        self, _caller: Caller, _params: dict[str, Any], _exchange: Exchange
    ) -> dict[str, Any]:
        return {"tokens": [row.to_json() for row in await self._service.membership.tokens()]}
