"""Conversations as ShareGPT writes them: {"conversations": [{"from", "value"}, …]}."""

from __future__ import annotations

from merit.data.format import Format
from merit.data.formats.messages import conversation

FORMAT = Format(columns={"messages": "conversations"}, read=conversation, order=20)
