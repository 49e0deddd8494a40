import time
import weakref

import pytest

from inference.protocol import Generate, SamplingParams
from service.engine.engine_request import EngineRequest
from service.errors import Overloaded


@pytest.mark.usefixtures("no_collector")
async def test_a_refused_request_is_freed_with_its_pictures_at_once():
    sampling = SamplingParams(max_tokens=1)
    generate = Generate(request_id="r", prompt_token_ids=[1], sampling=sampling)
    request = EngineRequest(generate, time.monotonic)
    held = weakref.ref(request)
    request.fail(Overloaded(1.0))

    try:
        await request.take()
    except Overloaded:
        assert request.has_ended
    del request

    assert held() is None
