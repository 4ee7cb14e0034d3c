"""Downloads, from a server of our own: checked, kept, not repeated."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from nnsight_vae import datasets
from nnsight_vae.datasets.download import located
from nnsight_vae.errors import DataError


@pytest.fixture
def server(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    running = HTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shared)))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield shared, f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_a_download_is_checked_kept_and_not_repeated(server, tmp_path):
    shared, url = server
    (shared / "data.npz").write_bytes(b"content")
    md5 = hashlib.md5(b"content").hexdigest()
    file = located("data", None, f"{url}/data.npz", md5, tmp_path / "cache", False)
    assert file == tmp_path / "cache" / "data.npz"
    assert file.read_bytes() == b"content"
    (shared / "data.npz").unlink()
    assert located("data", None, f"{url}/data.npz", md5, tmp_path / "cache", False) == file


def test_a_download_with_another_checksum_or_none_at_all_leaves_nothing(server, tmp_path):
    shared, url = server
    (shared / "data.npz").write_bytes(b"other content")
    for name in ("data.npz", "absent.npz"):
        with pytest.raises(DataError, match=rf"could not be downloaded from {url}/{name}(.|\n)*give path="):
            located("data", None, f"{url}/{name}", "0" * 32, tmp_path / "cache", False)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.is_file()]


def test_half_a_file_is_never_taken_for_whole(server, tmp_path):
    """Neither one that a killed run left in the cache, nor one whose server hangs up."""
    shared, url = server
    cache = tmp_path / "cache"
    (shared / "data.npz").write_bytes(b"content")
    cache.mkdir()
    (cache / "data.npz").write_bytes(b"cont")
    file = located("data", None, f"{url}/data.npz", hashlib.md5(b"content").hexdigest(), cache, False)
    assert file.read_bytes() == b"content"

    class HangsUp(SimpleHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"cont")

        def log_message(self, *args):
            pass

    other = HTTPServer(("127.0.0.1", 0), HangsUp)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{other.server_port}/half.npz"
        with pytest.raises(DataError, match="could not be downloaded"):
            located("half", None, address, hashlib.md5(b"cont").hexdigest(), cache, False)
    finally:
        other.shutdown()
        other.server_close()
    assert [found.name for found in cache.iterdir()] == ["data.npz"]


@pytest.mark.parametrize("name", ["celeba", "causal3dident"])
def test_what_may_not_be_downloaded_says_where_it_is_had(name):
    with pytest.raises(DataError, match=f"{name} is not downloaded here: get it from https://"):
        datasets.load(name)
