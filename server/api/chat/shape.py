"""How ``/v1/chat/completions`` writes an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from protocol.sse import Event
from server.api.chat.calls import CallIds
from server.api.logprobs import chat_logprobs
from server.api.reading import AnswerReader
from server.api.service import Delta
from server.api.shapes import Envelope, Json, OpenAIShape, PromptTold, TokenCounts, TokensTold
from server.text.formats.parts import CallArguments, CallBegin, Content, Parsed, Part
from server.text.tokenizer import Tokenizer


class ChatShape(OpenAIShape):
    """`ChatCompletionResponse` and `ChatCompletionChunk` of `protocol.openai_answers`.

    The first chunk of an answer names the role alone. It belongs to the chunk with the first text, so that
    whether it was sent follows from whether any token was: a stream that is resumed never repeats it.
    """

    def __init__(
        self,
        envelope: Envelope,
        *,
        stream: bool,
        tokenizer: Tokenizer | None,
        reader: AnswerReader | None = None,
        ids: CallIds,
        prompt: PromptTold,
        tokens: TokensTold,
    ) -> None:
        super().__init__(envelope, "chatcmpl", "chat.completion.chunk" if stream else "chat.completion")
        self._tokenizer = tokenizer
        """Set where log probabilities are wanted."""
        self._reader = reader
        self._ids = ids
        self._prompt = prompt
        self._tokens = tokens

    def _choice(self, delta: Delta, name: str, message: Json) -> Json:
        reason: str | None = delta.finish_reason
        if reason == "stop" and self._reader is not None and self._reader.calls(delta.index):
            reason = "tool_calls"
        logprobs = None if self._tokenizer is None else chat_logprobs(self._tokenizer, delta.logprobs)
        choice: Json = {"index": delta.index, name: message, "logprobs": logprobs, "finish_reason": reason}
        return choice | self._tokens.answer(delta.token_ids)

    def event(self, delta: Delta, first: bool, counts: TokenCounts) -> list[Event]:
        message: Json = {}
        if delta.parts is not None:
            message = self._pieces(delta.index, delta.parts)
        elif delta.text:
            message = {"content": delta.text}
        event = (None, self._chunk(self._choice(delta, "delta", message), counts))
        if not first:
            return [event]
        before = counts._replace(completion=counts.completion - len(delta.token_ids))
        return [self._role(delta, before), event]

    def _role(self, delta: Delta, counts: TokenCounts) -> Event:
        """The event before the first piece of an answer."""
        message = {"role": "assistant", "content": ""}
        choice: Json = {"index": delta.index, "delta": message, "logprobs": None, "finish_reason": None}
        about_prompt = self._prompt.fields(delta) | self._tokens.prompt(delta.index)
        return (None, self._chunk(choice | self._tokens.answer([]), counts, about_prompt))

    def _pieces(self, answer: int, parts: Iterable[Part]) -> Json:
        """What `parts` add to the assistant's turn."""
        message: Json = {}
        calls: dict[int, Json] = {}
        for part in parts:
            if isinstance(part, CallBegin):
                call_id = self._ids.of(answer, part.index)
                function = {"name": part.name, "arguments": ""}
                calls[part.index] = {
                    "index": part.index,
                    "id": call_id,
                    "type": "function",
                    "function": function,
                }
            elif isinstance(part, CallArguments):
                call = calls.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
                call["function"]["arguments"] += part.text
            else:
                name = "content" if isinstance(part, Content) else "reasoning_content"
                message[name] = message.get(name, "") + part.text
        if calls:
            message["tool_calls"] = list(calls.values())
        return message

    def whole(self, answers: Sequence[Delta], counts: TokenCounts) -> bytes:
        choices = [self._choice(delta, "message", self._message(delta)) for delta in answers]
        about_prompt = self._prompt.fields(answers[0]) | self._tokens.prompt(0)
        return self._whole(choices, counts, about_prompt)

    def _message(self, delta: Delta) -> Json:
        message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
        if delta.parts is None:
            return message
        parsed = Parsed.of(delta.parts)
        message["content"] = parsed.content if parsed.content or not parsed.calls else None
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            message["tool_calls"] = [
                {
                    "id": self._ids.of(delta.index, number),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for number, call in enumerate(parsed.calls)
            ]
        return message
