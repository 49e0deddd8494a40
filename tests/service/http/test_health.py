"""What the probes say; the native health figures are tested with every path's common traits."""

import anyio

from service.errors import EngineUnavailable
from service.routes import health


async def test_startup_stays_started_when_the_engine_is_lost(service):
    with anyio.fail_after(5):
        while (await service.client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110
            await anyio.sleep(0.01)
    service.engine.is_ready = False

    ready = await service.client.get("/health/ready")
    startup = await service.client.get("/health/startup")

    assert (ready.status_code, ready.json()) == (503, {"status": "unavailable"})
    assert (startup.status_code, startup.json()) == (200, {"status": "started"})


async def test_startup_has_not_happened_before_an_engine_was_ready(serve, new_engine):
    engine = new_engine()
    engine.is_ready = False
    engine.model = None
    async with serve(engine) as (client, _):
        startup = await client.get("/health/startup")

    assert (startup.status_code, startup.json()) == (503, {"status": "loading"})


async def test_deep_health_generates_one_token(serve, new_engine):
    engine = new_engine()
    async with serve(engine) as (client, _):
        await client.get("/health/ready")
        deep = await client.get("/health/deep")

    assert (deep.status_code, deep.json()) == (200, {"status": "healthy"})
    assert [request.sampling.max_tokens for request in engine.requests] == [1]


async def test_deep_health_tells_why_no_token_came(serve, new_engine):
    engine = new_engine()
    engine.error = EngineUnavailable("engine_restarting", "The engine is restarting.")
    async with serve(engine) as (client, _):
        deep = await client.get("/health/deep")

    assert (deep.status_code, deep.json()) == (503, {"status": "engine_restarting"})


async def test_deep_health_has_a_deadline_of_its_own(serve, new_engine, monkeypatch):
    monkeypatch.setattr(health, "_TRIAL_SECONDS", 0.2)
    engine = new_engine()
    engine.holds = anyio.Event()
    async with serve(engine) as (client, _):
        deep = await client.get("/health/deep")

    assert (deep.status_code, deep.json()) == (503, {"status": "deadline_exceeded"})
    assert len(engine.cancelled) == 1


async def test_many_askers_share_one_token(serve, new_engine):
    engine = new_engine()
    statuses = []
    async with serve(engine) as (client, _), anyio.create_task_group() as tasks:

        async def ask() -> None:
            statuses.append((await client.get("/health/deep")).status_code)

        for _ in range(8):
            tasks.start_soon(ask)

    assert statuses == [200] * 8
    assert len(engine.requests) == 1
