"""The list of hostile inputs, and where each is tested: none can be lost in silence.

A row is tested where a test's parameter has its number (`row(26, …)`, `row-26-…`), or where
`ELSEWHERE` says. What is asked of every answer: its own status and code, an id, nothing of the
input in it, and no other request harmed.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
NUMBERED = (
    "end_to_end/hostile/test_bodies.py",
    "end_to_end/hostile/test_media.py",
    "end_to_end/hostile/test_heads.py",
    "service/http/test_hostile.py",
)

ROWS = {
    1: "a body that is no JSON",
    2: "an empty body",
    3: "JSON nested 100 000 deep",
    4: "invalid UTF-8 within JSON",
    5: "a lone surrogate",
    6: "NaN and Infinity",
    7: "a number beyond every float",
    8: "a value of another type than the field's",
    9: "a key given twice",
    10: "a body of 200 MB",
    11: "a chunked body without end, a byte at a time",
    12: "a head a byte at a time; a connection that says nothing",
    13: "a header of 1 MB; 10 000 headers",
    14: "two framings of one body; two lengths; bare line feeds",
    15: "no Host, or another",
    16: "JSON announced as text",
    17: "a compressed body",
    18: "an unknown path or method",
    19: "no key, a wrong key, a key without the right",
    20: "a form without boundary, or cut short",
    21: "1001 parts; 1000 headers in a part",
    22: "a file field repeated",
    23: "a file without a name; a part without a name",
    24: "a file name that is a path, 10 KB long, or holds NUL",
    25: "a URL of another scheme",
    26: "a URL to a private address, however it is written",
    27: "a public URL that leads to a private one",
    28: "a name that is public first and private then",
    29: "a URL that two parsers read in two ways",
    30: "a loop of redirects",
    31: "a URL that answers 404 or 500, or has no valid TLS",
    32: "a URL that is slow, or drips",
    33: "a URL with an endless body",
    34: "a URL that gives HTML",
    35: "101 URLs",
    36: "pictures that are too large together",
    37: "broken base64",
    38: "a data URL of another kind",
    39: "an empty picture",
    40: "a header that says 100 000 x 100 000",
    41: "bombs in a picture's metadata",
    42: "a picture of 1 x 100 000",
    43: "a picture of one pixel",
    44: "a picture cut short",
    45: "a wrong checksum",
    46: "SVG",
    47: "formats off the list",
    48: "HEIC without its extra",
    49: "EXIF orientation",
    50: "animations",
    51: "colour hidden under alpha",
    52: "16-bit samples",
    53: "CMYK, YCCK, LAB",
    54: "palettes, 1-bit, grey with alpha",
    55: "an EXIF id that equals another picture's",
    56: "other files in place of a document",
    57: "documents: locked, scripted, of 10 000 pages, of a million points",
    58: "videos: too long, too many frames, a header that lies",
    59: "text that spells special tokens",
    60: "text beyond the context",
    61: "token limits out of bounds",
    62: "sampling parameters out of bounds, or at their edge",
    63: "too many answers, stop strings, biases",
    64: "output schemas: recursive, huge, remote, explosive",
    65: "parameters that would let a client run the server",
    66: "conversations that are none",
    67: "an unknown model",
    68: "known fields that are not supported",
    69: "answers with line ends, markup and escapes",
    70: "a client that leaves: queued, in prefill, in decode, while its picture is fetched",
    71: "a client that reads a byte at a time",
    72: "a deadline shorter than the wait",
    73: "a deadline that passes in decode",
    74: "a full queue",
    75: "a quota used up",
    76: "no memory for one request",
    77: "the engine killed with requests in flight",
    78: "a web worker killed",
    79: "a file, or a stream, of another key",
    80: "too many open streams and connections",
    81: "an upgrade to another protocol",
}

ELSEWHERE = {
    4: ["service/http/fuzz/test_bodies.py::test_json_that_is_nearly_right"],
    10: [
        "service/http/test_native_faults.py::test_large_body_without_announcement_is_refused_at_the_limit",
        "service/http/test_slow_clients.py::test_a_body_that_is_announced_too_large_is_not_taken",
    ],
    11: ["service/http/test_slow_clients.py::test_a_body_that_drips_is_told_so_and_cut"],
    12: [
        "service/http/test_http_protocol.py::test_a_head_that_does_not_end_in_time_is_refused",
        "service/http/test_http_protocol.py::test_a_connection_that_stays_silent_is_closed",
    ],
    14: ["service/http/test_http_protocol.py::test_other_protocols_and_their_tricks_are_refused"],
    15: ["service/http/test_access.py::test_only_named_hosts_are_answered"],
    19: [
        "service/http/test_access.py::test_without_a_key_only_the_open_paths_answer",
        "service/http/test_access.py::test_any_other_key_is_refused",
        "service/access/test_keys.py::test_only_admins_pass_where_admins_are_required",
    ],
    24: [
        "service/http/test_files.py::test_a_file_name_is_for_show_alone",
        "service/http/test_native.py::test_file_names_are_ignored",
    ],
    # A name must resolve in two ways, so the resolver is the test's own.
    27: ["service/media/test_fetch.py::test_a_name_that_turns_private_on_the_way_is_refused"],
    28: ["service/media/test_fetch.py::test_a_name_is_resolved_once_and_what_was_checked_is_asked"],
    49: ["service/media/test_colour.py::test_every_exif_orientation_comes_out_upright"],
    50: ["service/media/test_decode.py::test_only_the_first_of_many_frames_is_decoded"],
    51: ["service/media/test_colour.py::test_png_modes_become_rgb_on_white"],
    52: ["service/media/test_colour.py::test_every_16_bit_grey_is_a_257th_rounded"],
    53: [
        "service/media/test_colour.py::test_cmyk_follows_the_ink_formula",
        "service/media/test_colour.py::test_ycck_is_read_as_inverted_ink",
        "service/media/test_colour.py::test_lab_becomes_srgb",
    ],
    54: ["service/media/test_colour.py::test_palettes_keep_their_transparency"],
    55: [
        "service/media/test_colour.py::test_pixels_are_the_only_thing_hashed",
        "service/media/test_decode.py::test_equal_pixels_of_another_shape_hash_differently",
    ],
    57: [
        "service/media/test_pdf.py::test_scripts_and_actions_do_nothing",
        "service/media/test_pool_documents.py::test_a_page_that_never_ends_is_ended",
    ],
    58: ["service/media/test_video.py::test_a_header_that_hides_the_frames_is_not_believed"],
    64: ["inference/test_grammar.py::test_bomb_is_refused_as_too_complex"],
    69: [
        "service/http/test_native_stream.py::test_text_of_line_breaks_and_markup_stays_one_event",
        "service/http/test_openai_stream.py::test_text_of_line_breaks_and_markup_stays_one_event",
        "end_to_end/test_playground.py::test_markup_in_a_question_stays_text",
    ],
    70: [
        "service/http/test_native_stream.py::test_client_that_leaves_ends_its_request",
        "service/http/test_native_stream.py::test_client_that_leaves_before_the_first_event_ends_its_request",
        "service/http/test_openai_stream.py::test_client_that_leaves_ends_its_request",
        "service/http/fuzz/test_streams.py::test_a_client_that_leaves_at_any_point_leaves_nothing_behind",
        "service/media/test_pool.py::test_a_cancelled_caller_frees_its_processes",
    ],
    71: [
        "service/http/test_slow_clients.py::test_a_stream_that_nobody_reads_is_cut_counted_and_cancelled",
        "service/http/test_native_stream.py::test_other_streams_go_on_beside_one_that_does_not_read",
        "service/http/test_http_protocol.py::test_a_client_that_does_not_read_is_cut_and_no_other_waits",
    ],
    72: ["service/http/test_deadlines.py::test_who_is_turned_away_is_told_when_to_return"],
    73: [
        "service/http/test_deadlines.py::test_a_stream_that_is_too_late_tells_what_it_took",
        "service/http/test_openai_stream.py::test_deadline_in_a_stream_is_its_last_event",
    ],
    74: ["service/http/test_deadlines.py::test_who_is_turned_away_is_told_when_to_return"],
    75: ["service/http/test_deadlines.py::test_who_is_turned_away_is_told_when_to_return"],
    76: [
        "service/http/test_native.py::test_engine_errors_have_their_status_and_say_when_to_retry",
        "inference/engine/test_out_of_memory.py::test_a_prefill_that_finds_no_memory_fails_alone",
    ],
    77: [
        "end_to_end/test_faults.py::test_requests_under_way_outlive_a_killed_engine",
        "end_to_end/test_faults.py::test_streams_go_on_where_a_killed_engine_left_them",
        "service/engine/test_engine_client.py::test_every_request_ends_exactly_once_whatever_happens",
    ],
    78: [
        "end_to_end/test_faults.py::test_a_killed_worker_is_replaced_while_the_others_answer",
        "inference/test_main.py::test_a_worker_that_is_lost_takes_its_requests_with_it_and_no_others",
    ],
    79: ["service/http/test_files.py::test_another_tenants_file_is_as_one_that_is_not"],
    80: [
        "service/http/test_access.py::test_more_requests_than_a_worker_takes_are_refused_but_not_its_probes",
        "service/http/test_access.py::test_one_key_s_streams_leave_room_for_another_s",
        "service/http/test_http_protocol.py::test_connections_beyond_the_limit_are_told_and_closed",
    ],
    81: [
        "service/http/test_http_protocol.py::test_an_upgrade_is_passed_over_and_its_connection_goes_on",
    ],
}  # fmt: skip

# What befell others' servers, and the test that it does not befall this one.
LESSONS = {
    "frames are never unpickled": "test_architecture.py::test_nothing_is_unpickled",
    "any bytes on the wire are messages or errors":
        "inference/test_frames.py::test_a_hundred_thousand_mutilated_frames_are_messages_or_errors",
    "sizes of pictures are checked on both sides":
        "inference/engine/test_refusals.py::test_a_picture_whose_size_does_not_match_is_refused",
    "a library's message reaches no client":
        "service/media/test_decode.py::test_a_refusal_carries_no_library_text",
    "formats are told by bytes from a short list":
        "service/media/test_decode.py::test_other_files_never_meet_a_decoder",
    "no two pictures share a cache entry":
        "service/media/test_decode.py::test_equal_pixels_of_another_shape_hash_differently",
    "no spelling of a path goes around the keys":
        "service/http/test_access.py::test_no_spelling_of_a_path_gets_past_the_guard",
    "a forwarded host opens nothing":
        "service/http/test_hostile.py::test_a_forwarded_host_opens_no_door",
    "a forwarded address decides nothing":
        "service/http/test_hostile.py::test_a_forwarded_address_is_no_more_than_a_line_in_the_log",
    "origins are compared whole":
        "service/http/test_access.py::test_pages_of_other_origins_get_no_permission",
    "a URL is parsed once":
        "service/media/test_remote_url.py::test_whatever_is_read_can_be_sent_as_it_is",
    "frames are counted before they are kept":
        "service/media/test_video.py::test_an_announced_length_beyond_the_bound_is_refused_unread",
    "a decoder that is killed takes one picture with it":
        "service/media/test_pool.py::test_a_picture_that_kills_its_process_is_refused_alone",
}  # fmt: skip


def numbered_rows() -> set[int]:
    text = "".join((TESTS / name).read_text() for name in NUMBERED)
    return {int(number) for number in re.findall(r"\brow(?:\(|-)(\d+)[,-]", text)}


def test_every_row_has_a_test():
    assert set(ROWS) == set(range(1, 82))
    assert set(ROWS) - numbered_rows() - set(ELSEWHERE) == set()
    assert numbered_rows() <= set(ROWS)


@pytest.mark.parametrize(
    "place",
    sorted({*LESSONS.values(), *(place for places in ELSEWHERE.values() for place in places)}),
)
def test_the_tests_named_here_are_there(place):
    name, _, function = place.partition("::")
    module = ast.parse((TESTS / name).read_text())
    functions = {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert function in functions
