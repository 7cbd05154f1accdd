"""/v1/conversations: a name that points to the last of a chain of stored sessions."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from pretrain.inference.chat import Turn
from pretrain.inference.server import wire
from pretrain.inference.server.answer import Answers
from pretrain.inference.server.errors import ApiError, bad_request, not_found
from pretrain.inference.server.http import owner_of, service_of, while_connected
from pretrain.inference.server.keep import Keeper
from pretrain.inference.server.schemas import (
    ConversationRequest,
    ItemsRequest,
    Message,
    SamplingRequest,
)
from pretrain.inference.server.service import Service
from pretrain.inference.server.store import TURN, Entry, NotStored, new_id

router = APIRouter()
KIND = "conv"
Limit = Annotated[int, Query(ge=1, le=100)]  # messages a page
Order = Literal["asc", "desc"]


@dataclass
class Conversation:
    """A conversation: an entry of the store whose parent is its last turn."""

    service: Service
    owner: str
    id: str
    head: str  # its last turn; "": none yet
    created: int
    metadata: dict[str, str]

    @staticmethod
    def stored(http: Request, id: str) -> Conversation:
        """ApiError 404: it is not stored, or not for the request's owner."""
        service, owner = service_of(http), owner_of(http)
        try:
            entry, record = service.store.record(owner, id)
        except NotStored:
            raise not_found("Conversation", id, "conversation") from None
        if not id.startswith(KIND):
            raise not_found("Conversation", id, "conversation")
        service.store.touch(id)
        return Conversation(
            service, owner, id, entry.parent, int(record["created_at"]), record["metadata"]
        )

    @property
    def shown(self) -> wire.Json:
        return {
            "id": self.id, "object": "conversation", "created_at": self.created,
            "metadata": self.metadata,
        }  # fmt: skip

    @property
    def ended(self) -> ApiError:
        """The error if its last turn is no longer stored."""
        return ApiError(
            404, f"The last turn of conversation '{self.id}' is no longer stored, so it cannot "
            "be continued: start a new conversation.",
            param="conversation", code="not_found",
        )  # fmt: skip

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks it for one request. ApiError 409 if another has it."""
        if self.id in self.service.locked:
            raise ApiError(
                409, "Another response of this conversation is running; try again when it ends.",
                param="conversation", code="conversation_locked",
            )  # fmt: skip
        self.service.locked.add(self.id)
        try:
            yield
        finally:
            self.service.locked.discard(self.id)

    async def move(self, head: str) -> None:
        """Makes a stored turn its last one."""
        self.head = head
        await self.save()

    async def save(self) -> None:
        await self.service.in_order(self._put)

    async def describe(self, metadata: dict[str, str]) -> None:
        """Replaces its metadata."""
        self.metadata = metadata
        await self.service.in_order(self._put_again)

    def _put(self) -> None:
        record = {"created_at": self.created, "metadata": self.metadata}
        self.service.put(Entry(self.id, self.owner, self.head), record)

    def _put_again(self) -> None:
        with suppress(NotStored):  # its last turn may have been deleted meanwhile
            self.head = self.service.store.entry(self.owner, self.id).parent
        self._put()


async def _read(
    service: Service,
    owner: str,
    http: Request,
    messages: list[Message],
    conversation: Conversation | None = None,
) -> str:
    """Reads messages that need no answer, at the end of a conversation, and stores the session.
    Returns its id.
    """
    turns = [Turn(m.role, m.content) for m in messages]
    service.engine.check_room(1)
    if conversation is not None and conversation.head:
        start = await asyncio.to_thread(
            service.start_after, owner, conversation.head, service.form, turns, None,
            conversation.ended,
        )  # fmt: skip
    else:
        start = await asyncio.to_thread(service.start_history, owner, service.form, turns, None)
    if start.end is None:
        raise bad_request(
            "With this model's chat template these items cannot be stored on their own: send "
            "them with the request that asks for an answer.", "items",
        )  # fmt: skip
    del start.tokens[start.end :]
    if not start.tokens:  # everything is stored already
        return start.parent
    keeper, id = Keeper(service, owner, start), new_id(TURN)
    reading = Answers(service, start, _READING, most=0, mark=keeper.mark)
    reading.begin()
    await while_connected(http, reading.finish())
    await keeper.items(id, reading.each[0].end.session)
    return id


_READING = SamplingRequest(model="")


@router.post("/v1/conversations")
async def create(request: ConversationRequest, http: Request) -> Response:
    service, owner = service_of(http), owner_of(http)
    head = await _read(service, owner, http, request.items) if request.items else ""
    conversation = Conversation(
        service, owner, new_id(KIND), head, int(time.time()), request.metadata or {}
    )
    await conversation.save()
    return JSONResponse(conversation.shown)


@router.get("/v1/conversations/{id}")
def retrieve(id: str, http: Request) -> Response:
    return JSONResponse(Conversation.stored(http, id).shown)


@router.post("/v1/conversations/{id}")
async def update(id: str, request: ConversationRequest, http: Request) -> Response:
    if request.items is not None:
        raise bad_request("Add items at /v1/conversations/{id}/items.", "items")
    if request.metadata is None:
        raise bad_request("Missing required parameter: 'metadata'.", "metadata")
    conversation = Conversation.stored(http, id)
    with conversation.locked():
        await conversation.describe(request.metadata)
    return JSONResponse(conversation.shown)


@router.delete("/v1/conversations/{id}")
async def delete(id: str, http: Request) -> Response:
    """Deletes the name, and turns without an id of their own; responses stay until they are deleted
    or evicted.
    """
    conversation = Conversation.stored(http, id)
    with conversation.locked():
        await asyncio.to_thread(conversation.service.delete, conversation.owner, id)
    return JSONResponse({"id": id, "object": "conversation.deleted", "deleted": True})


@router.post("/v1/conversations/{id}/items")
async def add_items(id: str, request: ItemsRequest, http: Request) -> Response:
    conversation = Conversation.stored(http, id)
    with conversation.locked():
        read = _read(conversation.service, conversation.owner, http, request.items, conversation)
        await conversation.move(await read)
    lineage = conversation.service.store.lineage(conversation.owner, conversation.head)
    added = [*islice(_newest_first(lineage), len(request.items))][::-1]
    return JSONResponse(wire.listed(added, None, len(added)))


@router.get("/v1/conversations/{id}/items")
def items(
    id: str, http: Request, limit: Limit = 20, order: Order = "desc", after: str | None = None
) -> Response:
    """The messages, as far back as they are stored."""
    conversation = Conversation.stored(http, id)
    lineage = conversation.service.store.lineage(conversation.owner, conversation.head)
    return page(lineage, limit, order, after)


def page(
    lineage: Iterable[tuple[Entry, dict[str, Any]]],
    limit: int,
    order: Order,
    after: str | None,
    answered_by: str = "",
) -> Response:
    """A page of a conversation's messages.

    Args:
        answered_by: an entry whose answer is left out.
    """
    newest_first = list(_newest_first(lineage, answered_by))
    ordered = newest_first if order == "desc" else newest_first[::-1]
    if after is not None and all(item["id"] != after for item in ordered):
        raise not_found("Item", after, "after")
    return JSONResponse(wire.listed(ordered, after, limit))


def _newest_first(
    lineage: Iterable[tuple[Entry, dict[str, Any]]], answered_by: str = ""
) -> Iterator[wire.Json]:
    """A conversation's messages, see `page`."""
    for entry, record in lineage:
        number = entry.id.partition("_")[2]
        if record["answer"] is not None and entry.id != answered_by:
            yield wire.input_item(f"msg_{number}", "assistant", record["answer"])
        for i, (role, content) in reversed(list(enumerate(record["turns"]))):
            yield wire.input_item(f"msg_{number}{i:02x}", role, content)
