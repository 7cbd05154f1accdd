"""Stores the sessions of a conversation's turn: one under its id, others at marks in its input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pretrain.inference.chat import Turn
from pretrain.inference.server.answer import Answer
from pretrain.inference.server.digests import digest
from pretrain.inference.server.job import Facts
from pretrain.inference.server.service import Mark, Service, Start
from pretrain.inference.server.store import MARK, Entry, new_id
from pretrain.inference.session import Session


class Keeper:
    """Stores the sessions of one request; each entry's parent is the previous one.

    Everything is written in one thread, in order, so a parent is on disk before its child.
    """

    def __init__(self, service: Service, owner: str, start: Start) -> None:
        self.service, self.owner, self.start = service, owner, start
        self.parent = start.parent

    def mark(self, mark: Mark, session: Session) -> None:
        """Stores the session at a mark in the input; called in the engine's thread."""
        id = new_id(MARK)
        self.service.write_later(self.service.put, *self._new(id, mark.turns, mark.digest, session))
        self.parent = id

    async def answer(self, id: str, answer: Answer, shown: dict[str, Any] | None) -> None:
        """Stores the session after an answer. shown: the object that is returned for its id later.

        Raises:
            ApiError: 507, the disk is full.
        """
        end, text = answer.end, answer.said.text
        known = self.start.digest and digest(self.start.digest, Turn("assistant", text))
        new = self._new(id, self.start.turns, known, end.session, end.unread, text, shown)
        await self.service.in_order(self.service.put, *new)

    async def items(self, id: str, session: Session) -> None:
        """Stores the session after messages without an answer."""
        new = self._new(id, self.start.turns, self.start.digest, session)
        await self.service.in_order(self.service.put, *new)

    def _new(
        self,
        id: str,
        turns: Sequence[Turn],
        known: str,
        session: Session,
        unread: tuple[int, ...] = (),
        answer: str | None = None,
        shown: dict[str, Any] | None = None,
    ) -> tuple[Entry, dict[str, Any], Session]:
        """The arguments of `Service.put`."""
        assert self.start.form is not None, "what is kept is a conversation"
        tokens, facts = session.position + len(unread), asdict(Facts.of(session))
        entry = Entry(
            id, self.owner, self.parent, self.start.form.key, known, tokens, unread, facts
        )
        return entry, {"turns": [*map(list, turns)], "answer": answer, "object": shown}, session
