import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.media.remote_url import RemoteUrl, UrlInvalid, matches_host, parse_remote_url


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("http://a.example", ("http", "a.example", 80, "/"), id="bare"),
        pytest.param("HTTPS://A.Example./", ("https", "a.example", 443, "/"), id="case-and-dot"),
        pytest.param("http://a.example:8080/x", ("http", "a.example", 8080, "/x"), id="port"),
        pytest.param("http://a.example:/x", ("http", "a.example", 80, "/x"), id="empty-port"),
        pytest.param("http://a.example?q#f", ("http", "a.example", 80, "/?q"), id="no-path"),
        pytest.param(
            "http://a.example/%2e%2e//b", ("http", "a.example", 80, "/%2e%2e//b"), id="raw"
        ),
        pytest.param("http://[2606:4700::1]/", ("http", "2606:4700::1", 80, "/"), id="ipv6"),
        pytest.param("http://a_b.example/", ("http", "a_b.example", 80, "/"), id="underscore"),
        pytest.param(
            "http://bücher.example/ü?ö=ß",
            ("http", "xn--bcher-kva.example", 80, "/%C3%BC?%C3%B6=%C3%9F"),
            id="outside-ascii",
        ),
        pytest.param("http://①②⑦.0.0.1/", ("http", "127.0.0.1", 80, "/"), id="circled-digits"),
        pytest.param("http://127.1/", ("http", "127.1", 80, "/"), id="short-ipv4"),
    ],
)
def test_urls_are_read(text, expected):
    assert parse_remote_url(text) == RemoteUrl(*expected)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("a.example/x.png", id="no-scheme"),
        pytest.param("//a.example/x.png", id="only-authority"),
        pytest.param("http:/a.example/", id="one-slash"),
        pytest.param("http:a.example", id="no-slash"),
        pytest.param("http:///x.png", id="no-host"),
        pytest.param("http://?x", id="no-host-but-query"),
        pytest.param("http://:80/", id="only-port"),
        pytest.param("http://user@a.example/", id="user"),
        pytest.param("http://user:word@a.example/", id="password"),
        pytest.param("http://a.example\\@b.example/", id="backslash-and-at"),
        pytest.param("http://a.example\\b", id="backslash"),
        pytest.param("http://a.example/\\..", id="backslash-in-path"),
        pytest.param(" http://a.example/", id="leading-space"),
        pytest.param("http://a.example/ ", id="trailing-space"),
        pytest.param("http://a.example/a b", id="space"),
        pytest.param("http://a.example/a\tb", id="tab"),
        pytest.param("ht\ttp://a.example/", id="tab-in-scheme"),
        pytest.param("http://a.example/a\r\nHost: b", id="line-end"),
        pytest.param("http://a.example/\x00", id="nul"),
        pytest.param("http://a.example/\x7f", id="delete"),
        pytest.param("http://a.example/\u2028", id="line-separator"),
        pytest.param("http://a.example/\u202e", id="direction-override"),
        pytest.param("http://a.example/\ud800", id="surrogate"),
        pytest.param("http://a.example:x/", id="port-letters"),
        pytest.param("http://a.example:-1/", id="negative-port"),
        pytest.param("http://a.example:٣/", id="arabic-port"),
        pytest.param("http://a.example:80:80/", id="two-ports"),
        pytest.param("http://a..example/", id="empty-label"),
        pytest.param("http://.example/", id="leading-dot"),
        pytest.param("http://a.example../", id="two-trailing-dots"),
        pytest.param("http://-a.example/", id="leading-hyphen"),
        pytest.param("http://" + "a" * 64 + ".example/", id="long-label"),
        pytest.param("http://" + "a." * 127 + "example/", id="long-name"),
        pytest.param("http://a%2eexample/", id="escaped-host"),
        pytest.param("http://a!b/", id="odd-letter"),
        pytest.param("http://℀.example/", id="not-idna"),
        pytest.param("http://xn--zz--.example/", id="broken-punycode"),
        pytest.param("http://[::1/", id="open-bracket"),
        pytest.param("http://[::1].example/", id="after-bracket"),
        pytest.param("http://[127.0.0.1]/", id="ipv4-in-brackets"),
        pytest.param("http://[::1%25eth0]/", id="zone"),
        pytest.param("http://[::1%eth0]/", id="zone-unescaped"),
        pytest.param("http://[v1.a]/", id="future-address"),
        pytest.param("http://a.example/" + "a" * 8192, id="too-long"),
    ],
)
def test_all_else_is_refused(text):
    with pytest.raises(UrlInvalid) as refusal:
        parse_remote_url(text)

    assert not refusal.value.has_foreign_scheme


@pytest.mark.parametrize(
    "text",
    [
        "file:///etc/passwd",
        "ftp://a.example/x.png",
        "gopher://127.0.0.1:6379/_INFO",
        "javascript:alert(1)",
        "blob:https://a.example/1",
        "httpx://a.example/",
        "ws://a.example/",
        "data:image/png;base64,AAAA",
    ],
)
def test_other_schemes_are_told_apart(text):
    with pytest.raises(UrlInvalid) as refusal:
        parse_remote_url(text)

    assert refusal.value.has_foreign_scheme


HOSTS = st.text(alphabet="aAzZ019.-_:@[]%/\\?# \t\x00①é℀。", max_size=20)


@given(st.text(max_size=40) | HOSTS.map(lambda host: f"http://{host}/x"))
@example("http://a/\u3000")
def test_whatever_is_read_can_be_sent_as_it_is(text):
    try:
        url = parse_remote_url(text)
    except UrlInvalid:
        return

    for piece in (url.host, url.target):
        assert piece
        assert all("!" <= letter <= "~" for letter in piece)
    assert url.target.startswith("/")
    assert not set(url.host) & set("@/\\?#%[] ")
    assert url.host == url.host.lower()
    assert 0 <= url.port <= 99999
    assert parse_remote_url(f"{url.scheme}://{url.host_header}{url.target}") == url


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/x", "https://a.example/x"),
        ("x", "https://a.example/d/x"),
        ("?q", "https://a.example/d/e?q"),
        ("//b.example/x", "https://b.example/x"),
        ("http://b.example:81/x", "http://b.example:81/x"),
    ],
)
def test_redirects_are_read_from_where_they_come(location, expected):
    url = parse_remote_url("https://a.example/d/e?f")

    assert url.followed_to(location) == parse_remote_url(expected)


@pytest.mark.parametrize(
    "location", ["file:///x", "http://[::1", "/a\tb", "http://u@b.example/", "\\\\b.example\\x"]
)
def test_redirects_are_read_as_strictly(location):
    with pytest.raises(UrlInvalid):
        parse_remote_url("https://a.example/").followed_to(location)


@pytest.mark.parametrize(
    ("host", "pattern", "expected"),
    [
        ("a.example", "a.example", True),
        ("a.example", "A.Example.", True),
        ("b.a.example", "a.example", False),
        ("b.a.example", "*.a.example", True),
        ("c.b.a.example", "*.a.example", True),
        ("a.example", "*.a.example", False),
        ("xa.example", "*.a.example", False),
    ],
)
def test_a_pattern_is_a_host_or_all_below_one(host, pattern, expected):
    assert matches_host(host, [pattern]) is expected
