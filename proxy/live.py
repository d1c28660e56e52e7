"""What only the running gateway knows, for the JSON API: open joules, open runs, engines as they are."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import Request

from proxy import clock
from proxy.api.energy import DeviceBooks
from proxy.energy.attribution import Attribution
from proxy.energy.ledger_reader import Parts
from proxy.energy.meter import Meter
from proxy.energy.receipts import Book, Receipt, share_quality
from proxy.energy.views import Moved, Views
from proxy.keys import Keys
from proxy.route import Lane


class LiveGateway:
    """The API's view of the gateway. Everything answers at once, on the event loop."""

    def __init__(
        self,
        meter: Meter,
        attribution: Attribution,
        book: Book,
        keys: Keys,
        lanes: list[Lane],
        pue: Mapping[str, float],
    ) -> None:
        self._meter, self._attribution, self._book = meter, attribution, book
        self.keys, self._lanes, self._pue = keys, lanes, pue

    def books(self) -> dict[str, DeviceBooks]:
        counters, open_uj = self._meter.counter_uj(), self._meter.open_uj()
        known, devices = self._attribution.foreign_known(), self._meter.devices
        books: dict[str, DeviceBooks] = {}
        for name, device in devices.items():
            parts = self._meter.committed.get(name, Parts())
            books[name] = DeviceBooks(
                counter_uj=counters.get(name, 0),
                workflow_uj=parts.workflow_uj,
                open_uj=open_uj.get(name, 0),
                idle_uj=parts.idle_uj,
                foreign_uj=parts.foreign_uj,
                gap_uj=parts.gap_uj,
                foreign_known=known.get(name, False),
                quality=device.quality,
            )
        return books

    def provisional_uj(self, tenant: str, run: str) -> tuple[int, dict[str, int]]:
        by_request = {receipt.id: self._open_uj(receipt) for receipt in self._book.pending(tenant, run)}
        return sum(by_request.values()), by_request

    def _open_uj(self, receipt: Receipt) -> int:
        now = clock.now()
        running = [attempt.progress for attempt in receipt.attempts if attempt.progress is not None]
        return sum(self._attribution.provisional_uj(progress, now) for progress in running)

    def unsettled(self, tenant: str, run: str) -> set[str]:
        return {one.id for one in self._book.pending(tenant, run)} | self._meter.writing(tenant, run)

    def why_unknown(self, engine: str) -> str | None:
        if (withheld := self._attribution.why_withheld(engine)) is not None:
            return withheld
        known = self._meter.devices
        lane = next((lane for lane in self._lanes if lane.name == engine), None)
        if lane is None or any(name in known for name in lane.engine.devices):
            return None
        return f"no counter saw what engine {engine} did; name its devices in the configuration (devices: [host/gpu:0])"

    def views(self) -> Views:
        books = self.books()
        devices = {
            name: Moved(share_quality(one.quality).value, one.workflow_uj, one.idle_uj, one.foreign_uj, one.gap_uj)
            for name, one in books.items()
        }
        hosts = {lane.name: lane.engine.devices[0].partition("/")[0] for lane in self._lanes if lane.engine.devices}
        return Views(devices, self._attribution.floors, self._pue, hosts)

    def close_run(self, tenant: str, run: str) -> bool:
        return self._book.ask_to_close(tenant, run)

    async def committed(self) -> None:
        await self._meter.next_commit()

    def tenant_of(self, request: Request) -> str | None:
        return self.keys.tenant(dict(request.headers.raw))

    def engines(self) -> list[dict[str, Any]]:
        return [
            {
                "name": lane.name,
                "kind": lane.engine.kind,
                "url": lane.engine.url,
                "up": lane.up,
                "breaker": lane.breaker.state(clock.now()).value,
                "in_flight": lane.gate.total,
                "queued": lane.gate.waiting,
                "limit": lane.gate.limit,
                "devices": list(lane.engine.devices),
                "sample": asdict(lane.sample) if lane.sample else None,
                "attribution": self._attribution.method(lane.works_for or lane.name, clock.now()),
            }
            for lane in self._lanes
        ]
