import pytest

from inference.embeddings import EmbeddingCache

A, B, C = (("", name * 32) for name in (b"a", b"b", b"c"))


def kept(cache, key, num_bytes):
    """Encode a picture that nobody needs any more."""
    cache.reserve(key, num_bytes)
    cache.pin(key)
    cache.store(key, f"features of {key[1][:1].decode()}")
    cache.unpin(key)


def test_features_are_found_by_tenant_and_content():
    cache = EmbeddingCache(100)
    kept(cache, A, 10)

    assert cache.get(A) == "features of a"
    assert A in cache
    assert ("another tenant", A[1]) not in cache


def test_a_reservation_without_features_is_promised_but_not_there():
    cache = EmbeddingCache(100)
    cache.reserve(A, 10)

    assert A in cache
    assert not cache.is_stored(A)
    with pytest.raises(KeyError):
        cache.get(A)


def test_the_least_recently_used_goes_first():
    cache = EmbeddingCache(20)
    kept(cache, A, 10)
    kept(cache, B, 10)
    cache.get(A)

    kept(cache, C, 10)

    assert (A in cache, B in cache, C in cache) == (True, False, True)
    assert cache.num_bytes == 20


def test_a_pinned_entry_is_never_evicted():
    cache = EmbeddingCache(20)
    kept(cache, A, 10)
    cache.pin(A)
    kept(cache, B, 10)

    kept(cache, C, 10)

    assert (A in cache, B in cache, C in cache) == (True, False, True)


def test_pins_count():
    cache = EmbeddingCache(20)
    kept(cache, A, 10)
    cache.pin(A)
    cache.pin(A)

    cache.unpin(A)
    assert cache.num_pinned_bytes == 10
    cache.unpin(A)

    assert cache.num_pinned_bytes == 0


def test_a_picture_larger_than_the_cache_has_room_only_alone():
    cache = EmbeddingCache(20)
    assert cache.has_room(1000)
    kept(cache, A, 10)
    cache.pin(A)

    assert cache.has_room(10)
    assert not cache.has_room(11)


def test_what_passes_the_cap_goes_as_soon_as_nobody_needs_it():
    cache = EmbeddingCache(20)
    cache.reserve(A, 1000)
    cache.pin(A)
    cache.store(A, "large")
    assert cache.get(A) == "large"

    cache.unpin(A)

    assert A not in cache
    assert (cache.num_bytes, len(cache)) == (0, 0)


def test_an_entry_whose_encoding_never_came_goes_with_its_last_pin():
    cache = EmbeddingCache(20)
    cache.reserve(A, 10)
    cache.pin(A)

    cache.unpin(A)

    assert A not in cache
    assert cache.num_bytes == 0


def test_clear_leaves_what_is_pinned():
    cache = EmbeddingCache(100)
    kept(cache, A, 10)
    kept(cache, B, 10)
    cache.pin(B)

    cache.clear()

    assert (A in cache, B in cache) == (False, True)
    assert cache.num_bytes == 10
