"""Error responses in OpenAI's format: one object that names the parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi.responses import Response
from pydantic import BaseModel


class Detail(BaseModel):
    """What is wrong with a request, or with the server."""

    message: str
    type: str
    param: str | None  # the parameter at fault, by its path in the body
    code: str | None  # the error's name for programs


class ErrorBody(BaseModel):
    """The body of each error response, for the server's OpenAPI description."""

    error: Detail


class ApiError(Exception):
    """Becomes {"error": {"message", "type", "param", "code"}} with an HTTP status.

    Args:
        param: the parameter at fault, by its path in the body. code: the error's name for programs.
        retry_after: seconds, for the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.detail = {"message": message, "type": type, "param": param, "code": code}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.detail}

    def response(self) -> Response:
        """The HTTP response, in ASCII, whatever the message quotes."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        body = json.dumps(self.body)
        return Response(body, self.status, headers, media_type="application/json")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def not_found(what: str, id: str, param: str | None = None) -> ApiError:
    """The same error whether the id never existed, is another client's, was deleted or evicted."""
    code = "previous_response_not_found" if param == "previous_response_id" else "not_found"
    return ApiError(404, f"{what} with id '{id}' not found.", param=param, code=code)


def server_failed() -> ApiError:
    """An internal error, which the log describes; the client gets no details."""
    why = "The server failed on this request; its log says why."
    return ApiError(500, why, type="server_error", code="internal_error")


def too_busy(message: str) -> ApiError:
    return ApiError(429, message, type="rate_limit_error", code="queue_full", retry_after=1)


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first of the errors that pydantic found in a request."""
    first, sections = errors[0], ("body", "query", "[key]")
    kind, place = first["type"], [part for part in first["loc"] if part not in sections]
    if kind == "json_invalid":
        why = first.get("ctx", {}).get("error", "malformed")
        return bad_request(f"The request's body is not valid JSON: {why}.")
    if kind == "model_attributes_type" and not place:
        # bytes: the body was not parsed as JSON, because the header does not say so
        status = 415 if isinstance(first["input"], bytes) else 400
        why = "The body must be a JSON object sent with Content-Type: application/json."
        return ApiError(status, why)
    param = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
    if kind == "extra_forbidden":
        return bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if kind == "missing":
        missing = f"Missing required parameter: '{param}'." if param else "The body is missing."
        return bad_request(missing, param or None, "missing_required_parameter")
    if kind == "unsupported_parameter":
        param = first["ctx"]["param"]
        return bad_request(first["msg"], param, kind)
    param = param or kind  # an error that concerns several parameters is named by its kind
    return bad_request(f"Invalid '{param}': {first['msg']}.", param, "invalid_value")
