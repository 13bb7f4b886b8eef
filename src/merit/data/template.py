"""A chat template as a function from messages to text, and where in that text an assistant turn lies.

No `{% generation %}` markers are needed: a turn is found by rendering parts of the conversation, and what cannot be
found is refused, so that a mask is right or absent.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from merit.base.errors import InputError
from merit.data.example import Message
from merit.data.image import ImageRef

# For tokenizers without a template. `bos` is there only where the tokenizer puts it before plain text, too.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token if eos_token else '' }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"
)
# Some templates print today's date: the same data would be encoded differently tomorrow. A macro hides the function.
_FIXED_DATE = (
    "{% macro strftime_now(format) -%}"
    "{{ {'%Y-%m-%d': '2024-07-26', '%d %b %Y': '26 Jul 2024'}.get(format, '26 July 2024') }}"
    "{%- endmacro %}"
)
_MARKER = "meritmarksthisturn"  # stands in for a turn's content; plain letters, so that no template changes it
_NO_CALLS = "the chat template does not show tool calls; write them into `content`, or use another template"
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the keys under which templates look for it


def template_of(tokenizer: Any) -> str:
    """The tokenizer's template, or the plain one; what an exported model must carry to be prompted as it was tuned."""
    if getattr(tokenizer, "chat_template", None):
        text: str = tokenizer.get_chat_template()
        return text
    bos = tokenizer.bos_token
    # Text, because an empty text gets no bos from some tokenizers.
    adds = bos is not None and tokenizer("a", verbose=False)["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds else "") + PLAIN_TEMPLATE


class ChatTemplate:
    """Renders conversations and locates assistant turns.

    Args:
        image_token: what stands for an image in the text; None for a model that takes none.
    """

    def __init__(self, tokenizer: Any, image_token: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.source = template_of(tokenizer)
        self._template = (_FIXED_DATE if "strftime_now" in self.source else "") + self.source
        self._tools: list[Any] | None = None

    def with_tools(self, tools: str | None) -> ChatTemplate:
        """This template where it describes `tools`, a JSON list, to the model."""
        if tools is None and self._tools is None:
            return self
        _ = self.has_prompt_header, self._calls_as_text  # of the template alone: found once, and copied
        other = copy.copy(self)
        other._tools = json.loads(tools) if tools is not None else None
        return other

    def whole(self, messages: Sequence[Message]) -> str:
        """The text of a whole conversation.

        Raises:
            InputError: as `text`; the template leaves out the tools, a call of one, or the reasoning of the last turn.
                Of earlier turns a template may well strip it.
        """
        text = self.text(messages)
        if self._tools is not None and text == self.with_tools(None).text(messages):
            raise InputError("the chat template does not show them; use another `model.chat_template`", field="tools")
        for number, turn in enumerate(messages, start=1):
            for call in turn.more.get("tool_calls", ()):
                if call["function"]["name"] not in text:
                    raise InputError(_NO_CALLS, field=f"turn {number}.tool_calls")
        last = messages[-1].more.get("reasoning", "") if messages else ""
        if last.strip() not in text:
            raise InputError(
                "the chat template leaves out the reasoning of this turn; write it into `content`, or use another "
                "template",
                field=f"turn {len(messages)}.reasoning_content",
            )
        return text

    def text(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The conversation as text; with `prompt`, the header that makes the assistant speak follows.

        Raises:
            InputError: the template refuses the conversation (roles that do not alternate, no tool role, …).
        """
        return self._apply([self._message(turn, number) for number, turn in enumerate(messages, 1)], prompt=prompt)

    def _message(self, turn: Message, number: int) -> dict[str, Any]:
        message = {"role": turn.role, "content": self._content(turn)}
        if not turn.fields:
            return message
        fields = turn.more
        if (reasoning := fields.pop("reasoning", None)) is not None:
            if self._reasoning_key is None:
                raise InputError(
                    "the chat template shows no reasoning; write it into `content`, as <think>…</think>",
                    field=f"turn {number}.reasoning_content",
                )
            message[self._reasoning_key] = reasoning
        if calls := fields.pop("tool_calls", None):
            if self._calls_as_text is None:
                raise InputError(_NO_CALLS, field=f"turn {number}.tool_calls")
            message["tool_calls"] = [_written(call, as_text=self._calls_as_text) for call in calls]
        return message | fields

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The key of a turn under which the template looks for its reasoning."""
        return next((key for key in _REASONING if re.search(rf"(?:\.|['\"]){key}\b", self.source)), None)

    @cached_property
    def _calls_as_text(self) -> bool | None:
        """Whether the template wants the arguments of a tool call as JSON text, since it joins them to its own, or as
        an object, which it writes itself; None where it shows no call."""
        call = {"id": "merit0000", "type": "function", "function": {"name": "lookup", "arguments": {"a": _MARKER}}}
        for as_text in (False, True):
            turn = {"role": "assistant", "content": "", "tool_calls": [_written(call, as_text=as_text)]}
            try:
                text = self._apply([{"role": "user", "content": "a"}, turn])
            except InputError:
                continue
            # Not Python's way to write an object, nor JSON as text within JSON.
            shown = text.count(_MARKER) == 1 and "lookup" in text
            if shown and f"'{_MARKER}'" not in text and f'\\"{_MARKER}' not in text:
                return as_text
        return None

    def _apply(self, turns: Sequence[dict[str, Any]], *, prompt: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            text: str = self.tokenizer.apply_chat_template(
                turns,
                chat_template=self._template,
                tools=self._tools,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise InputError(f"the chat template refuses this conversation: {error}") from None
        except RecursionError:
            raise InputError("the chat template calls itself without end") from None
        return text

    def _content(self, turn: Message) -> Any:
        if self.image_token is None:
            return turn.content
        if self._takes_parts:
            return [
                {"type": "image"} if isinstance(part, ImageRef) else {"type": "text", "text": part}
                for part in turn.parts or [""]
            ]
        return "".join(self.image_token if isinstance(part, ImageRef) else part for part in turn.parts)

    @cached_property
    def _takes_parts(self) -> bool:
        """Whether the template knows a content of parts; a plain one would print the list."""
        content = [{"type": "image"}, {"type": "text", "text": _MARKER}]
        try:
            text = self._apply([{"role": "user", "content": content}])
        except InputError:
            return False
        return text.count(_MARKER) == 1 and "'type'" not in text and text.count(str(self.image_token)) == 1

    def _attempt(self, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
        """As `text`; None where the template refuses, since a part of a conversation need not be one."""
        try:
            return self.text(messages, prompt=prompt)
        except InputError:
            return None

    @cached_property
    def has_prompt_header(self) -> bool:
        """Whether the template knows `add_generation_prompt`; true if that cannot be found out."""
        turns = [Message("user", _MARKER)]
        plain = self._attempt(turns)
        return plain is None or plain != self._attempt(turns, prompt=True)

    @cached_property
    def ends_turns(self) -> bool:
        """Whether anything visible ends an assistant turn; if nothing does, no model learns to stop. True if that
        cannot be found out, because the template wants more than a question and an answer."""
        return bool(self.closing) or self._attempt([Message("user", "a"), Message("assistant", _MARKER)]) is None

    @cached_property
    def opening(self) -> str:
        """What the template writes between the generation prompt and an answer: an empty think block, a channel."""
        question = [Message("user", "a")]
        prompt = self._attempt(question, prompt=True)
        text = self._attempt([*question, Message("assistant", _MARKER)])
        if prompt is None or text is None or not text.startswith(prompt) or not self.has_prompt_header:
            return ""
        return text[len(prompt) :].partition(_MARKER)[0].strip()

    @cached_property
    def closing(self) -> str:
        """What ends an assistant turn, the last of a conversation; white space apart."""
        text = self._attempt([Message("user", "a"), Message("assistant", _MARKER)])
        return "" if text is None else text.partition(_MARKER)[2].strip()

    @cached_property
    def end_token(self) -> int | None:
        """The token that ends an assistant turn, and so must end generation. None if a turn ends with plain text, which
        a token cannot tell from an answer's own, or with nothing."""
        ids = self.tokenizer(self.closing, add_special_tokens=False, verbose=False)["input_ids"] if self.closing else []
        known = {*self.tokenizer.added_tokens_decoder, self.tokenizer.eos_token_id}
        return ids[0] if ids and ids[0] in known else None

    def turn(self, messages: Sequence[Message], index: int, full: str) -> tuple[int, int]:
        """Characters [start, end) of assistant turn `index` in `full`, the text of all `messages`.

        The turn begins where the generation prompt ends and goes through its end-of-turn token; white space that the
        template puts after that is not part of it.

        Raises:
            InputError: the template renders the turn in a way in which its place cannot be known.
        """
        start, end = self._start(messages, index, full), self._end(messages, index, full)
        if start is None or end is None:
            head, closing, tail = self._around(messages, index)
            if start is None and full.startswith(head):
                start = self._after_prompt(messages[:index], full, len(head))
            shown = closing if tail.startswith(closing) else self._middle_closing(tail)
            if end is None and shown is not None and full.endswith(tail):
                end = len(full) - len(tail) + len(shown)
        if start is None or end is None:
            raise InputError(
                "the chat template renders this turn differently within a conversation, so what to supervise is "
                "unknown; use another `model.chat_template`",
                field=f"turn {index + 1}",
            )
        end = len(full[:end].rstrip())
        if end <= start:
            raise InputError("the chat template renders nothing for this assistant turn", field=f"turn {index + 1}")
        return start, end

    def _after_prompt(self, before: Sequence[Message], full: str, start: int) -> int:
        """Where a turn begins whose content begins at `start`: white space that the template puts between the text of
        the turns before, which a deployed model gets, and the content is the model's to write."""
        text = self._attempt(before) if before else None
        if text is not None and full.startswith(text) and full[len(text) : start].isspace():
            return len(text)
        return start

    def _middle_closing(self, tail: str) -> str | None:
        """What closes an assistant turn within a conversation where the last turn closes otherwise: the special token
        that follows its content, if the template closes a user's turn with that token, too. None if it does not: such a
        token opens the next turn. `tail` is all that follows the content."""
        user = (self._attempt([Message("user", _MARKER), Message("assistant", "a")]) or "").partition(_MARKER)[2]
        body = tail.lstrip()
        known = [token.content for token in self.tokenizer.added_tokens_decoder.values()]
        for token in sorted(known, key=len, reverse=True):
            if body.startswith(token) and user.lstrip().startswith(token):
                return tail[: len(tail) - len(body) + len(token)]
        return None

    def _start(self, messages: Sequence[Message], index: int, full: str) -> int | None:
        if index == 0 or not self.has_prompt_header:
            return None
        return self._prefix(messages[:index], full, prompt=True)

    def _end(self, messages: Sequence[Message], index: int, full: str) -> int | None:
        if index + 1 == len(messages):
            return len(full)
        return self._prefix(messages[: index + 1], full)

    def _prefix(self, messages: Sequence[Message], full: str, *, prompt: bool = False) -> int | None:
        text = self._attempt(messages, prompt=prompt)
        return len(text) if text is not None and full.startswith(text) else None

    def _around(self, messages: Sequence[Message], index: int) -> tuple[str, str, str]:
        """What stands before the content of turn `index`, what closes it, and all that stands after it."""
        marked = Message("assistant", _MARKER)
        whole = self.text([*messages[:index], marked, *messages[index + 1 :]])
        alone = self.text([*messages[:index], marked])
        if whole.count(_MARKER) != 1 or alone.count(_MARKER) != 1:
            raise InputError("the chat template drops or repeats this assistant turn", field=f"turn {index + 1}")
        head, _, tail = whole.partition(_MARKER)
        return head, alone.partition(_MARKER)[2].rstrip(), tail


def _written(call: dict[str, Any], *, as_text: bool) -> dict[str, Any]:
    """`call` with its arguments as an object, or as the JSON text of it."""
    if not as_text:
        return call
    function = call["function"]
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}
