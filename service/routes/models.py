"""`GET /v1/models`, as the OpenAI API has it: there is one, the served one."""

from pathlib import Path

import msgspec
from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse

from inference.protocol import ModelFacts
from service.chat import Chat
from service.routes.openai_input import check_model
from service.routes.openai_reply import Model, ModelList

_encoder = msgspec.json.Encoder()


class ModelRoutes:
    """The handlers, bound to what they look at."""

    def __init__(self, chat: Chat) -> None:
        self._chat = chat

    def handlers(self) -> list[HTTPRouteHandler]:
        """Make the handlers to register."""
        return [
            get("/v1/models")(self.all),
            get("/v1/models/{name:path}")(self.one),
        ]

    async def all(self) -> ASGIResponse:
        """List the model."""
        return _reply(ModelList(data=[_model(self._chat.model)]))

    async def one(self, name: FromPath[Path]) -> ASGIResponse:
        """Tell of the model by its name, in which there may be slashes."""
        model = self._chat.model
        check_model(str(name).removeprefix("/"), model)
        return _reply(_model(model))


def _model(model: ModelFacts) -> Model:
    return Model(id=model.name, created=_written_at(model.path), max_model_len=model.max_model_len)


def _written_at(path: str) -> int:
    """Tell when the checkpoint's configuration was written: the same in all workers."""
    try:
        return int((Path(path) / "config.json").stat().st_mtime)
    except OSError:
        return 0


def _reply(body: msgspec.Struct) -> ASGIResponse:
    return ASGIResponse(body=_encoder.encode(body), media_type="application/json")
