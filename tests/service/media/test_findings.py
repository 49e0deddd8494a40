"""Findings as clients read them."""

import sys

import pytest

from service.error_codes import ERROR_CODES
from service.media.budget import MediaLimits
from service.media.decoder_messages import Refused
from service.media.findings import to_error
from service.media.refusal import Refusal

TOO_LARGE = {
    Refusal.MEMORY_EXCEEDED,
    Refusal.TOO_MANY_PIXELS,
    Refusal.PDF_PAGE_TOO_LARGE,
    Refusal.PDF_TOO_MANY_PAGES,
    Refusal.VIDEO_TOO_LONG,
    Refusal.VIDEO_TOO_MANY_PIXELS,
}


@pytest.mark.parametrize("refusal", Refusal)
def test_every_finding_has_its_words_and_its_status(refusal):
    error = to_error(Refused(refusal=refusal, num_pages=40), MediaLimits(), "images[3]")

    assert error.code in ERROR_CODES
    assert (error.code, error.param) == (refusal.value, "images[3]")
    assert error.status == (413 if refusal in TOO_LARGE else 400)
    assert error.message.endswith(".")


@pytest.mark.parametrize("is_installed", [True, False])
def test_formats_are_listed_as_far_as_they_can_be_read(is_installed, monkeypatch):
    if not is_installed:
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
    limits = MediaLimits(formats=("png", "heic"))
    error = to_error(Refused(refusal=Refusal.FORMAT_UNSUPPORTED), limits, "image")

    assert "PNG" in error.message
    assert ("HEIC" in error.message) is is_installed
