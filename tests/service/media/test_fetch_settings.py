import pytest

from service.media.fetch_settings import FetchSettings
from service.options import SettingsError, options, resolve, shown

HEADERS = {"cdn.example.com": {"Authorization": "Bearer word"}}
AS_JSON = '{"cdn.example.com": {"Authorization": "Bearer word"}}'


def test_headers_are_a_table_of_the_file(tmp_path):
    path = tmp_path / "loupe.toml"
    path.write_text('[fetch_headers."cdn.example.com"]\nAuthorization = "Bearer word"\n')

    settings, _ = resolve({"config": str(path)}, {})

    assert settings.fetch.fetch_headers == HEADERS


def test_headers_are_json_in_a_flag_or_a_variable():
    by_flag, _ = resolve({"fetch_headers": AS_JSON}, {})
    by_variable, _ = resolve({}, {"LOUPE_FETCH_HEADERS": AS_JSON})

    assert by_flag.fetch.fetch_headers == by_variable.fetch.fetch_headers == HEADERS


def test_headers_are_shown_without_their_values():
    assert shown(HEADERS) == "cdn.example.com"
    assert options()["fetch_headers"].default_text == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("fetch_headers", "Authorization: word", id="no-json"),
        pytest.param("fetch_headers", '{"a.example": "word"}', id="no-table"),
        pytest.param("fetch_headers", '{"a.example": {"X": "a\\r\\nY: b"}}', id="line-end"),
        pytest.param("fetch_headers", '{"a.example": {"X Y": "b"}}', id="space-in-name"),
        pytest.param("fetch_headers", '{"http://a.example/": {"X": "b"}}', id="url-for-host"),
        pytest.param("fetch_ports", "0", id="port"),
        pytest.param("fetch_ports", "http", id="port-name"),
        pytest.param("fetch_allowed_hosts", "https://a.example", id="url"),
        pytest.param("fetch_private_hosts", "10.0.0.0/8/8", id="range"),
        pytest.param("fetch_timeout_seconds", "0", id="no-time"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name, text):
    with pytest.raises(SettingsError, match=name.replace("_", "-")):
        resolve({name: text}, {})


def test_lists_are_read():
    flags = {
        "fetch_ports": "80, 9000",
        "fetch_private_hosts": "10.0.0.0/8, fd00::/8, *.corp.example, minio",
        "fetch_allowed_hosts": "*.example.com,cdn.example.org",
    }

    settings, _ = resolve(flags, {})

    assert settings.fetch == FetchSettings(
        fetch_ports=(80, 9000),
        fetch_private_hosts=("10.0.0.0/8", "fd00::/8", "*.corp.example", "minio"),
        fetch_allowed_hosts=("*.example.com", "cdn.example.org"),
    )
