"""Output that fits into an answer: how it began and how it ended, and what is missing between."""

from __future__ import annotations

from collections import deque


class BoundedText:
    """Keeps the first and the last half of `most` characters, however many come."""

    def __init__(self, most: int) -> None:
        self._head_room = most // 2
        self._most_tail = most - self._head_room
        self._head: list[str] = []
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self.left_out = 0  # characters

    def add(self, text: str) -> None:
        begin, rest = text[: self._head_room], text[self._head_room :]
        self._head_room -= len(begin)
        self._head.append(begin)
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            self._shorten()

    def drop(self, size: int) -> None:
        """So many more were lost before they got here."""
        self.left_out += size

    def last_line(self, most: int = 200) -> str:
        ending = "".join([*self._head[-1:], *self._tail][-2:])
        return (ending.rstrip().rsplit("\n", 1)[-1])[-most:]

    def text(self) -> str:
        marker = f"\n[... {self.left_out} characters left out ...]\n" if self.left_out else ""
        return "".join(self._head) + marker + "".join(self._tail)

    def _shorten(self) -> None:
        while (excess := self._tail_size - self._most_tail) > 0:
            oldest = self._tail.popleft()
            if len(oldest) > excess:
                self._tail.appendleft(oldest[excess:])
            cut = min(len(oldest), excess)
            self._tail_size -= cut
            self.left_out += cut
