"""What a step holds, in which order, and that nothing of it stays."""


def test_priorities_go_first_and_equals_in_order_of_arrival(kit, models, asked):
    engine = kit.make_engine(models["dense"], max_num_seqs=1)
    for request_id, priority in [("a", 0), ("b", 1), ("c", 0), ("d", -1)]:
        engine.add(kit.owner, kit.generate(asked, request_id, 2, priority=priority))

    answers = kit.run(engine)

    assert [request_id for request_id, _ in answers.deltas] == ["d", "a", "c", "b"]


def test_nothing_grows_with_the_requests_that_have_passed(kit, models):
    """Cost per step and memory stay as they are: every container is as empty as before."""
    engine = kit.make_engine(models["dense"], num_blocks=20, embedding_cache_bytes=0)

    def sizes():
        scheduler, runner = engine.scheduler, engine.runner
        owners = (
            engine,
            engine._answers,
            engine._isolation,
            engine.gate,
            engine.gate._backlog,
            scheduler,
            scheduler.waiting,
            scheduler.blocks,
            scheduler.embeddings,
            runner,
        )
        return {
            f"{type(owner).__name__}.{name}": len(value)
            for owner in owners
            for name, value in vars(owner).items()
            if isinstance(value, dict | list | set)
        }

    def serve(number):
        parts = (kit.picture(1, 1, number),) if number % 50 == 0 else ()
        request = kit.case([number % 150], *parts, [number // 150])
        for sibling in "ab":
            engine.add(kit.owner, kit.generate(request, f"{number}{sibling}", 1 + number % 2))
        engine.step()
        engine.cancel(kit.owner, f"{number}a")

    for number in range(40):
        serve(number)
    kit.run(engine)
    before = sizes()
    for number in range(40, 1040):
        serve(number)
    kit.run(engine)

    assert sizes() == before


def test_rows_of_one_token_come_first_and_by_length(kit, models, cases):
    """What the runner asks for; the last token behind a prefix hit is one of them."""
    engine = kit.make_engine(models["dense"], max_num_batched_tokens=24)
    execute, batches = engine.runner.execute, []
    engine.runner.execute = lambda chunks: batches.append(chunks) or execute(chunks)
    for name in cases:
        engine.add(kit.owner, kit.generate(cases[name], name))
        engine.step()
    kit.run(engine)

    for chunks in batches:
        singles = [chunk.end for chunk in chunks if chunk.num_tokens == 1]
        assert [chunk.end for chunk in chunks[: len(singles)]] == sorted(singles)
    assert any(len({chunk.num_tokens > 1 for chunk in chunks}) == 2 for chunks in batches)
