"""What an error that was answered still holds.

An error holds the frames it passed, and they what they worked with: a view of all vectors, the body of a request. If
one of them holds the error, too, nothing but the garbage collector frees it all, and a node runs that rarely.
"""

from __future__ import annotations


def release(error: BaseException | None) -> None:
    """Forget the frames of an error that was answered, and of those that it came from. It is not raised after this."""
    released = set[int]()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in released:
            released.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
