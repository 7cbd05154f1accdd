"""The warm-up before a server listens runs a whole request, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from pretrain.inference.server.app import make_app
from pretrain.inference.server.warm import warm_up_app, warm_up_model
from pretrain.inference.session import Session
from tests.server.serving import serving


def test_a_whole_request_that_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, tokens = Session.read, list[int]()

    def noted(self: Session, ids: list[int], **options: bool) -> object:
        tokens.extend(ids)
        return read(self, ids, **options)

    with serving(run, tmp_path, answer_limit=1) as found:  # the smallest limit allowed
        service = found.service
        app = make_app(service, {"a key"}, 10**6)
        warm_up_model(service.decoder)
        monkeypatch.setattr(Session, "read", noted)
        try:
            asyncio.run(warm_up_app(app, service.name, "a key"))
        finally:
            gc.unfreeze()
        assert len(tokens) > 1
        assert len(service.store) == 0 and list(tmp_path.glob("*.safetensors")) == []
        assert service.engine.load == {"active": 0, "waiting": 0, "sleeping": 0}
        with pytest.raises(AssertionError, match="401"):
            asyncio.run(warm_up_app(app, service.name, "another"))
