"""One line in, at most one answer out, whatever the line holds.  Knows no sockets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import NamedTuple, cast

import structlog
from pydantic import ValidationError

from s5jtd import __version__, protocol, shapes
from s5jtd.control.peer import Caller
from s5jtd.control.requests import Request
from s5jtd.control.verbs import Access, Verb
from s5jtd.errors import Exit, NotPermitted, S5jtError
from s5jtd.protocol import RpcCode

log = structlog.get_logger()

#: A request has a handful of members; even a key made of nothing else stays below this.  Counting
#: them first keeps a line of a megabyte from becoming thirty megabytes of empty lists.
STRUCTURE_MAX = 8192
ID_LENGTH_MAX = 128  #: characters; it is sent back as it came


class Answer(NamedTuple):
    """What the server has to do about a line."""

    reply: dict[str, object] | None  #: None: nothing is to be said
    method: str = ""  #: "" where none was understood
    events: Iterator[shapes.Event | None] | None = None  #: to be sent on after the reply
    refused: bool = False  #: the caller may not do this


class _Call(NamedTuple):
    id: str | int | None
    notification: bool  #: there was no id, so there is no answer
    method: str
    params: dict[str, object]


class _Refusal(Exception):
    def __init__(self, code: RpcCode, message: str, hint: str, call_id: str | int | None = None) -> None:
        super().__init__(message)
        self.code, self.hint, self.id = code, hint, call_id


def answer(line: bytes, table: Mapping[str, Verb], caller: Caller) -> Answer:
    """Understand, authorise, check and perform what `line` asks.  Never raises."""
    try:
        call = _understand(line)
    except _Refusal as refusal:
        return Answer(_refused(refusal))
    refused = False
    name = call.method if call.method in table else ""
    try:
        verb = _authorised(call.method, table, caller)
        request = _checked(verb.request, call.params)
        if call.notification and verb.streams:
            return Answer(None, name)  # a stream nobody could recognise
        if verb.access is Access.OPERATOR:  # before what comes of it, which may take long, or end badly
            log.info("operator_request", method=name, parameters=call.params, uid=caller.uid, pid=caller.pid)
        result = verb.perform(request)
    except _Refusal as refusal:
        refusal.id = call.id
        reply = _refused(refusal)
    except S5jtError as error:
        reply, refused = failure(error, call.id), isinstance(error, NotPermitted)
    except Exception:  # a bug in one verb must not end the connection, let alone the daemon
        log.exception("verb_failed", method=name)
        reply = _internal(call.id)
    else:
        reply = {"jsonrpc": "2.0", "id": call.id, "result": result}
        if verb.streams:
            reply["result"] = shapes.Subscribed(result="subscribed")
            return Answer(reply, name, cast("Iterator[shapes.Event | None]", result))
    return Answer(None if call.notification else reply, name, refused=refused)


def failure(error: S5jtError, call_id: str | int | None = None) -> dict[str, object]:
    """The reply that says what our own error says."""
    return _reply(call_id, str(error), code=error.code, hint=error.hint, end=error.exit)


def overloaded(message: str) -> dict[str, object]:
    """The reply to a client for whom there is no room just now."""
    return _reply(None, message, code="overloaded", hint="try again in a moment", end=Exit.TEMPORARY)


def unreadable(error: protocol.Malformed) -> dict[str, object]:
    """The reply to what is no request at all."""
    return _refused(_unparsed(error))


def line_of(reply: dict[str, object]) -> bytes:
    """The reply as one line that keeps to the protocol, or an error that does."""
    call_id = cast("str | int | None", reply.get("id"))
    try:
        line = protocol.encode(reply)
    except (ValueError, TypeError, RecursionError):
        log.exception("reply_unspeakable")
        return protocol.encode(_internal(call_id))
    if len(line) <= protocol.LINE_BYTES_MAX + 1:
        return line
    too_long = _reply(
        call_id,
        "Cannot answer in one line: the answer is longer than 1 MiB",
        code="answer_too_long",
        hint="ask for less: one job, a smaller limit, a report without its objects",
    )
    return protocol.encode(too_long)


def _understand(line: bytes) -> _Call:
    """Read a line as JSON-RPC 2.0, strictly."""
    message = _object(line)
    call_id = _id(message)
    if message.get("jsonrpc") != "2.0":
        raise _invalid('jsonrpc is to be "2.0"', call_id)
    if unknown := message.keys() - {"jsonrpc", "id", "method", "params"}:
        raise _invalid(f"unknown member {_shown(min(unknown))}", call_id)
    method, params = message.get("method"), message.get("params", {})
    if not isinstance(method, str):
        raise _invalid("method is a string", call_id)
    if not isinstance(params, dict):
        raise _invalid("params is an object that names each parameter", call_id)
    return _Call(call_id, "id" not in message, method, params)


def _object(line: bytes) -> dict[str, object]:
    try:
        if sum(map(line.count, (b"{", b"[", b",", b":"))) > STRUCTURE_MAX:
            raise protocol.Malformed("no request has so many members")
        message = protocol.decode(line)
    except protocol.Malformed as error:
        raise _unparsed(error) from None
    if isinstance(message, list):
        raise _invalid("batches are not served", None)
    if not isinstance(message, dict):
        raise _invalid("a request is a JSON object", None)
    return message


def _id(message: Mapping[str, object]) -> str | int | None:
    call_id = message.get("id")
    if isinstance(call_id, bool) or not isinstance(call_id, str | int | None):
        raise _invalid("id is a string, an integer or null", None)
    if isinstance(call_id, str) and len(call_id) > ID_LENGTH_MAX:
        raise _invalid(f"id is longer than {ID_LENGTH_MAX} characters", None)
    return call_id


def _authorised(method: str, table: Mapping[str, Verb], caller: Caller) -> Verb:
    verb = table.get(method)
    if verb is None:
        raise _Refusal(
            RpcCode.METHOD_NOT_FOUND,
            f"Cannot do {_shown(method)}: this s5jtd ({__version__}) knows no such method",
            "it knows: " + " ".join(table),
        )
    if verb.access is Access.OPERATOR and not caller.may_change():
        raise NotPermitted(
            f"{method} by uid {caller.uid}, who is not in the group {caller.operators}",
            hint=f"use root, or as root: usermod -aG {caller.operators} {caller.name()}",
        )
    return verb


def _checked(model: type[Request], params: dict[str, object]) -> Request:
    try:
        return model.model_validate(params)
    except ValidationError as error:
        said = [_complaint(item["type"], item["loc"], item["msg"], model) for item in error.errors()[:3]]
    known = " ".join(model.model_fields)
    raise _Refusal(
        RpcCode.INVALID_PARAMS,
        "Cannot use the parameters: " + "; ".join(said),
        f"parameters: {known}" if known else "it takes no parameters",
    )


def _complaint(kind: str, where: tuple[int | str, ...], words: str, model: type[Request]) -> str:
    """What is wrong with one parameter, without repeating its value."""
    name = str(where[0]) if where else ""
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name[:80], model.model_fields, n=1)
        return f"unknown parameter {_shown(name)}" + (f", did you mean {near[0]}?" if near else "")
    words = words.removeprefix("Value error, ")
    return f"{name}: {words}" if name else words


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 60 else text[:60] + "...")


def _unparsed(error: protocol.Malformed) -> _Refusal:
    return _Refusal(
        RpcCode.PARSE_ERROR, f"Cannot understand the line: {error}", "send one JSON object on each line"
    )


def _invalid(message: str, call_id: str | int | None) -> _Refusal:
    return _Refusal(
        RpcCode.INVALID_REQUEST,
        f"Cannot understand the request: {message}",
        'an example: {"jsonrpc":"2.0","id":1,"method":"status"}',
        call_id,
    )


_WORDS = {
    RpcCode.PARSE_ERROR: ("parse_error", Exit.FAILED),
    RpcCode.INVALID_REQUEST: ("invalid_request", Exit.FAILED),
    RpcCode.METHOD_NOT_FOUND: ("method_not_found", Exit.USAGE),
    RpcCode.INVALID_PARAMS: ("invalid_params", Exit.USAGE),
}


def _refused(refusal: _Refusal) -> dict[str, object]:
    word, end = _WORDS[refusal.code]
    return _reply(refusal.id, str(refusal), code=word, hint=refusal.hint, end=end, rpc=refusal.code)


def _internal(call_id: str | int | None) -> dict[str, object]:
    return _reply(
        call_id,
        "Cannot answer because of an error in s5jtd itself",
        code=S5jtError.code,
        hint="look at: journalctl -u s5jtd -p err",
        rpc=RpcCode.INTERNAL_ERROR,
    )


def _reply(
    call_id: str | int | None,
    message: str,
    *,
    code: str,
    hint: str,
    end: Exit = Exit.FAILED,
    rpc: RpcCode = RpcCode.FAILED,
) -> dict[str, object]:
    data = shapes.ErrorData(code=code, hint=hint, exit=int(end))
    error = shapes.Error(code=int(rpc), message=message, data=data)
    return {"jsonrpc": "2.0", "id": call_id, "error": error}
