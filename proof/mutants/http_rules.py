"""Bugs of the HTTP door: what a request means, what it may take, how it ends."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_PATHS = "tests/server/http/test_paths.py::"
_ANSWERS = "tests/server/http/test_answers.py::"
_ENDINGS = "tests/server/http/test_endings.py::"
_TABLES = "tests/server/http/test_tables.py::"
_MEMORY = "tests/server/http/test_memory.py::"
_PAGES = "tests/server/http/test_pages.py::"
_HISTORY = "tests/server/test_history.py::"

MUTANTS = (
    Mutant(
        name="path-decoded-first",
        breaks="a name with a slash in it reaches the route that the slash makes of it",
        edits=(
            Edit(
                "server.http.paths:parts_of",
                'return [unquote_to_bytes(part).decode() for part in raw.split(b"/")]',
                'return unquote_to_bytes(raw).decode().split("/")',
            ),
        ),
        tests=(_PATHS + "test_names_are_decoded_after_the_path_is_divided",),
    ),
    Mutant(
        name="names-repaired",
        breaks="two names that are no UTF-8 are one document",
        edits=(Edit("server.http.paths:parts_of", ".decode() for", '.decode(errors="replace") for'),),
        tests=(_PATHS + "test_what_is_not_utf_8_is_no_name",),
    ),
    Mutant(
        name="created-and-counted",
        breaks="a collection that was made is said not to be, where a shard does not count its documents",
        edits=(
            Edit(
                "server.http.collections:create_collection",
                "dimensions=dimensions or 0,",
                "dimensions=dimensions or 0, documents=await call.client.counts(collection=body.name),",
            ),
        ),
        tests=(_ANSWERS + "test_a_collection_that_was_made_is_said_to_be",),
    ),
    Mutant(
        name="unpacked-not-counted",
        breaks="some kilobytes of gzip become gigabytes",
        edits=(Edit("server.http.message:_gunzip", "share.take(len(parts[-1]))", "pass"),),
        tests=(_MEMORY + "test_what_is_unpacked_is_counted_piece_by_piece",),
    ),
    Mutant(
        name="answers-not-counted",
        breaks="answers that nobody reads are made until the memory is full",
        edits=(Edit("server.http.call:hold", "call.share.take(", "print("),),
        tests=(_MEMORY + "test_an_answer_is_counted_before_it_is_made",),
    ),
    Mutant(
        name="decoders-at-once",
        breaks="large bodies are decoded at the same time",
        edits=(Edit("server.http.app:_Endpoint._from_body", "async with self._door.decoding:", "if True:"),),
        tests=(_MEMORY + "test_large_bodies_are_decoded_one_at_a_time",),
    ),
    Mutant(
        name="trailers-not-counted",
        breaks="trailers without end fill the memory",
        edits=(Edit("server.http.listener:_Connection._count", "self._fields > HEAD_BYTES_MAX", "False"),),
        tests=(_MEMORY + "test_trailers_are_counted",),
    ),
    Mutant(
        name="slow-connections-stay",
        breaks="slow connections keep probes out",
        edits=(Edit("server.http.listener:_Connection._make_room", "if oldest is None:", "if oldest is not self:"),),
        tests=(_MEMORY + "test_a_new_connection_takes_the_place_of_who_waits_longest",),
    ),
    Mutant(
        name="reads-outlive-their-callers",
        breaks="searches whose callers have left are gone on with",
        edits=(Edit("server.http.endings:Ending.__init__", "if drops:", "if not drops:"),),
        tests=(_ENDINGS + "test_who_leaves_waits_for_no_answer_and_writes_go_on",),
    ),
    Mutant(
        name="cut-writes-pass-for-refused",
        breaks="a write that a stop has cut is said not to be done",
        edits=(Edit("server.http.app:_Endpoint.__call__", "if ending.drops else", "if ending else"),),
        tests=(_ENDINGS + "test_a_stopping_node_says_so_to_who_waits",),
    ),
    Mutant(
        name="token-of-any-cluster",
        breaks="a session of another cluster waits here forever",
        edits=(Edit("server.http.session:decode", "founding != cluster", "founding < 0"),),
        tests=(_TABLES + "test_a_token_that_is_none_is_refused",),
    ),
    Mutant(
        name="long-bodies-on-the-loop",
        breaks="one long filter or change holds the node",
        edits=(Edit("server.http.call:Call.beside", "if not self.large:", "if True:"),),
        tests=(_ANSWERS + "test_what_is_long_is_read_in_a_thread",),
    ),
    Mutant(
        name="keys-passed-over",
        breaks="a request with an idempotency key is executed as if it had none",
        edits=(Edit("server.http.app:_Endpoint._call", "if key is not None:", "if False:"),),
        tests=(_ENDINGS + "test_a_key_is_refused_while_a_node_is_there_that_would_execute_a_repetition",),
    ),
    Mutant(
        name="exports-break-off-in-silence",
        breaks="an export that broke off has no last line that says so",
        edits=(
            Edit(
                "server.http.streams:_stream",
                "except NeedleError as error:",
                "except NeedleError as error:\n        raise",
            ),
        ),
        tests=(_ENDINGS + "test_an_answer_in_lines_that_breaks_off_says_why_in_its_last_line",),
    ),
    Mutant(
        name="codes-made-up",
        breaks="an error has a code that no document has",
        edits=(Edit("server.http.problems:Problem.__post_init__", "self.code not in CODES", "False"),),
        tests=(_TABLES + "test_the_document_says_what_generators_need_to_know",),
    ),
    Mutant(
        name="any-tag-will-do",
        breaks="a browser goes on with the page of an earlier release",
        edits=(
            Edit(
                "server.http.pages:Page.__call__",
                "if self._tag.encode() in _asked_tags(scope)",
                "if _asked_tags(scope)",
            ),
        ),
        tests=(_PAGES + "test_each_page_is_kept_by_its_tag_under_a_strict_policy",),
    ),
    Mutant(
        name="endless-history",
        breaks="what was seen of the cluster is kept until the memory is full",
        edits=(Edit("server.history:History.__init__", "deque(maxlen=MOMENTS)", "deque()"),),
        tests=(_HISTORY + "test_it_is_bounded_and_regular",),
    ),
    Mutant(
        name="p99-since-the-start",
        breaks="a chart of latencies says what was once, not what is",
        edits=(Edit("client.activity:_between", "count - first.get(bound, 0.0)", "count"),),
        tests=(_HISTORY + "test_only_calls_since_the_moment_before_count",),
    ),
)
