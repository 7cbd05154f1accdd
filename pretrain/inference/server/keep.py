"""What a conversation's turn leaves: a stored session for its id, and for its long inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pretrain.inference.chat import Turn
from pretrain.inference.server.answer import Answer
from pretrain.inference.server.digests import digest
from pretrain.inference.server.service import Mark, Service, Start, ToStore
from pretrain.inference.server.store import MARK, new_id
from pretrain.inference.session import Session


class Keeper:
    """Stores what one request reads and says, each entry's parent being the one before.

    Everything is written in one thread, in order, so a parent is on the disk before its child.
    """

    def __init__(self, service: Service, owner: str, start: Start) -> None:
        self.service, self.owner, self.start = service, owner, start
        self.parent = start.parent

    def mark(self, mark: Mark, session: Session) -> None:
        """In the engine's thread: the input up to a mark has been read."""
        new = ToStore(
            owner=self.owner, id=new_id(MARK), parent=self.parent, digest=mark.digest,
            session=session, record=self._record(mark.turns, None, None),
        )  # fmt: skip
        self.service.write_later(self.service.put, new)
        self.parent = new.id

    async def answer(self, id: str, answer: Answer, shown: dict[str, Any] | None) -> None:
        """An answer to all of the input. shown: the object that its id is asked for.

        Raises:
            ApiError: 507, there is no room on the disk.
        """
        end, text = answer.end, answer.said.text
        known = self.start.digest and digest(self.start.digest, Turn("assistant", text))
        new = ToStore(
            owner=self.owner, id=id, parent=self.parent, digest=known, session=end.session,
            unread=end.unread, record=self._record(self.start.turns, text, shown),
        )  # fmt: skip
        await self.service.put_in_order(new)

    async def items(self, id: str, session: Session) -> None:
        """Messages that nobody has answered."""
        new = ToStore(
            owner=self.owner, id=id, parent=self.parent, digest=self.start.digest,
            session=session, record=self._record(self.start.turns, None, None),
        )  # fmt: skip
        await self.service.put_in_order(new)

    def _record(
        self, turns: Sequence[Turn], answer: str | None, shown: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"turns": [list(turn) for turn in turns], "answer": answer, "object": shown}
