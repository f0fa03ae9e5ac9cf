"""The output items of ``/v1/responses`` as an answer grows, and the events that tell of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.api.chat.calls import CallIds
from server.text.formats.parts import CallArguments, CallBegin, Content, Part, Reasoning

Json = dict[str, Any]

_TEXT = {"message": "output_text", "reasoning": "reasoning_text"}


class Items:
    """The items of one answer.

    Each method returns the events that it causes, in the documented order, without sequence numbers.

    Args:
        request_id: ids of items are made from it.
        ids: of calls.
    """

    def __init__(self, request_id: str, ids: CallIds) -> None:
        self.done: list[Json] = []
        """Items that are complete, as they stand in the response."""
        self.reasoning = ""
        """All reasoning so far."""
        self._request_id = request_id
        self._ids = ids
        self._open: Json | None = None
        self._text = ""  # of the open item

    def take(self, parts: Iterable[Part]) -> list[Json]:
        """More of the answer came."""
        events: list[Json] = []
        for part in parts:
            if isinstance(part, CallBegin):
                events += self.close() + self._begin_call(part)
            elif isinstance(part, CallArguments):
                events += self._add(part.text, "response.function_call_arguments.delta")
            elif isinstance(part, Content):
                events += self._begin_text("message") + self._add(part.text, "response.output_text.delta")
            elif isinstance(part, Reasoning):
                self.reasoning += part.text
                events += self._begin_text("reasoning")
                events += self._add(part.text, "response.reasoning_text.delta")
        return events

    def close(self, status: str = "completed") -> list[Json]:
        """The open item, if there is one, is complete."""
        item = self._open
        if item is None:
            return []
        place, kind = self._place(item), item["type"]
        self._open = None
        if kind == "function_call":
            item |= {"arguments": self._text, "status": status}
            name = {"name": item["name"], "arguments": self._text}
            events = [{"type": "response.function_call_arguments.done", **place, **name}]
        else:
            part = self._part(kind, self._text)
            item |= {"content": [part], "status": status}
            where = {**place, "content_index": 0}
            text: Json = {"text": self._text}
            if kind == "message":
                text["logprobs"] = []
            events = [
                {"type": f"response.{_TEXT[kind]}.done", **where, **text},
                {"type": "response.content_part.done", **where, "part": part},
            ]
        events.append({"type": "response.output_item.done", "output_index": len(self.done), "item": item})
        self.done.append(item)
        return events

    def end(self, status: str) -> list[Json]:
        """The answer is complete, or cut; one without any item has an empty message."""
        begin = [] if self.done or self._open else self._begin_text("message")
        return begin + self.close(status)

    # ------------------------------------------------------------------------------------------

    def _place(self, item: Json) -> Json:
        return {"item_id": item["id"], "output_index": len(self.done)}

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._request_id}_{len(self.done)}"

    def _begin(self, item: Json) -> list[Json]:
        self._open, self._text = item, ""
        # a copy: the item changes until it is sent again
        return [{"type": "response.output_item.added", "output_index": len(self.done), "item": dict(item)}]

    def _begin_text(self, kind: str) -> list[Json]:
        if self._open is not None and self._open["type"] == kind:
            return []
        events = self.close()
        if kind == "message":
            item: Json = {"id": self._id("msg"), "type": kind, "role": "assistant"}
        else:
            item = {"id": self._id("rs"), "type": kind, "summary": []}
        events += self._begin({**item, "status": "in_progress", "content": []})
        assert self._open is not None
        events.append(
            {
                "type": "response.content_part.added",
                **self._place(self._open),
                "content_index": 0,
                "part": self._part(kind, ""),
            }
        )
        return events

    def _begin_call(self, part: CallBegin) -> list[Json]:
        return self._begin(
            {
                "id": self._id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": self._ids.of(0, part.index),
                "name": part.name,
                "arguments": "",
            }
        )

    def _add(self, text: str, event: str) -> list[Json]:
        assert self._open is not None
        self._text += text
        more: Json = {"delta": text}
        if self._open["type"] != "function_call":
            more["content_index"] = 0
        if self._open["type"] == "message":
            more["logprobs"] = []
        return [{"type": event, **self._place(self._open), **more}]

    @staticmethod
    def _part(kind: str, text: str) -> Json:
        part: Json = {"type": _TEXT[kind], "text": text}
        return part | {"annotations": [], "logprobs": []} if kind == "message" else part
