"""Bugs of the HTTP door: what a request means, what it may take, how it ends."""

from __future__ import annotations

from proof.mutants.planting import Edit, Mutant

_PATHS = "tests/server/http/test_paths.py::"
_ANSWERS = "tests/server/http/test_answers.py::"

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
                "server.http.documents:create_collection",
                "index=body.index or IndexParams(),",
                "index=body.index or IndexParams(), documents=await call.client.counts(collection=body.name),",
            ),
        ),
        tests=(_ANSWERS + "test_a_collection_that_was_made_is_said_to_be",),
    ),
)
