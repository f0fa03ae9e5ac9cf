"""Models that reason and call no tools: ``<think>…</think>`` before the answer."""

from server.text.formats.syntax import Format, Thinking

FORMAT = Format(name="think", declared_by=("</think>",), thinking=Thinking("<think>", "</think>"))
