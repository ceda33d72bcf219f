"""B2 and B3: servers that fail in every way, kills and companions while data sets are downloaded."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import signal
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_mnist
import torch
from bad_server import serving
from forks import fork, wait
from torchvision import datasets as torchvision_datasets

from vae_lab.data import standard
from vae_lab.data.standard import CIFAR10, download, no_downloads, obtaining
from vae_lab.errors import DataError
from vae_lab.training.train import train

pytestmark = pytest.mark.fault

CONTENT = np.random.default_rng(0).bytes(100_000)
MD5 = hashlib.md5(CONTENT).hexdigest()

BAD = {
    "silent": "TimeoutError: timed out",
    "stalls": "TimeoutError: timed out",
    "drops": f"checksum mismatch after 50,000 bytes: expected {MD5}, got",
    "flips": f"checksum mismatch after 100,000 bytes: expected {MD5}, got",
    "endless": "more than 1,000,000 bytes",
    "page": f"checksum mismatch after 41 bytes: expected {MD5}, got",
    "redirects_in_a_ring": "HTTP Error 302",
    "redirects_to_a_file": "HTTP Error 302",
    "forbidden": "HTTP Error 403: Forbidden",
    "garbage": "BadStatusLine",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    for key, value in {"TIMEOUT": 0.2, "MAX_BYTES": 1_000_000, "BACKOFF": 0.01}.items():
        monkeypatch.setattr(standard, key, value)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with serving() as server:
        server.files["file"] = CONTENT
        yield server


def files(folder: Path) -> list[str]:
    """The names of all files in a folder and below it, but for locks."""
    return sorted(path.name for path in folder.rglob("*") if not path.is_dir() and path.name != "download.lock")


def fetch(server, path: Path, *modes: str) -> None:
    with obtaining("Some data", path.parent, path.parent.name, [path.name]) as missing:
        if missing:
            download([server.url(mode) + "file" for mode in modes], path, MD5)


@pytest.fixture
def mnist(server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny files in place of those of MNIST, served well."""
    archives = {f"{name}.gz": gzip.compress(content) for name, content in tiny_mnist.FILES.items()}
    server.files |= archives
    resources = [(name, hashlib.md5(archive).hexdigest()) for name, archive in archives.items()]
    monkeypatch.setattr(torchvision_datasets.MNIST, "resources", resources)
    monkeypatch.setattr(torchvision_datasets.MNIST, "mirrors", [server.url("good")])
    tiny_mnist.expect(monkeypatch)


@pytest.mark.parametrize("mode", BAD)
def test_b2_a_bad_server_costs_little_and_leaves_nothing(mode: str, server, tmp_path):
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        fetch(server, tmp_path / "new" / "folder" / "file", mode)
    assert BAD[mode] in str(caught.value)
    assert server.url(mode) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len([path for path in server.requests if path == f"/{mode}/file"]) >= 3
    assert time.monotonic() - started < 3 * 0.2 + 3
    assert files(tmp_path) == []


@pytest.mark.parametrize("mode", ["good", "without_length", "keeps_open", "calls_it_encoded"])
def test_b2_a_good_server_is_asked_once(mode: str, server, tmp_path):
    for _ in range(2):
        fetch(server, tmp_path / "file", mode)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [f"/{mode}/file"]
    assert files(tmp_path) == ["file"]


def test_b2_the_next_mirror_is_tried(server, tmp_path):
    fetch(server, tmp_path / "file", "forbidden", "drops", "good")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == ["/forbidden/file", "/drops/file", "/good/file"]


def test_b2_a_server_that_is_not_there(server, tmp_path):
    with serving() as gone:
        pass
    with pytest.raises(DataError, match="refused"):
        fetch(gone, tmp_path / "new" / "file", "good")
    assert files(tmp_path) == []


def test_b2_a_kill_during_a_download_leaves_what_the_next_run_mends(server, mnist, tmp_path):
    archive = server.files["train-images-idx3-ubyte.gz"]
    server.files["train-images-idx3-ubyte.gz"] = bytes(100_000)
    torchvision_datasets.MNIST.mirrors[:] = [server.url("stalls")]
    raw = tmp_path / "MNIST" / "raw"
    child = fork(lambda: tiny_mnist.read(tmp_path))
    deadline = time.monotonic() + 60
    while not list(raw.glob("*.gz.part")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert wait(child) == -signal.SIGKILL
    assert not list(raw.glob("*ubyte")) + list(raw.glob("*.gz"))
    (raw / "train-labels-idx1-ubyte.gz").write_bytes(b"half")  # as other programs leave it
    server.files["train-images-idx3-ubyte.gz"] = archive
    torchvision_datasets.MNIST.mirrors[:] = [server.url("good")]
    assert torch.equal(tiny_mnist.read(tmp_path), tiny_mnist.PIXELS)
    names = [*tiny_mnist.FILES, *(f"{name}.gz" for name in tiny_mnist.FILES)]
    assert files(raw) == sorted(names)


def test_b2_what_is_there_is_not_downloaded_again(server, mnist, tmp_path):
    tiny_mnist.read(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte").unlink()
    images = tiny_mnist.FILES["train-images-idx3-ubyte"]
    (raw / "train-images-idx3-ubyte").write_bytes(images[:1000])  # a killed extraction
    server.requests.clear()
    with pytest.raises(DataError, match="checksum mismatch .*/train-images-idx3-ubyte: .*delete it and run again"):
        tiny_mnist.read(tmp_path)
    (raw / "train-images-idx3-ubyte").unlink()
    assert torch.equal(tiny_mnist.read(tmp_path), tiny_mnist.PIXELS)
    assert server.requests == []  # the archives are still good


def test_b2_a_folder_that_cannot_be_written_is_named(server, mnist, tmp_path):
    (tmp_path / "MNIST").write_text("not a folder")
    with pytest.raises(DataError, match=r"MNIST was not found .*Not a directory: .*/MNIST/raw.*: set data_root"):
        tiny_mnist.read(tmp_path)


def test_b2_cifar10_is_unpacked_without_what_does_not_belong(server, tmp_path, monkeypatch: pytest.MonkeyPatch):
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    rng = np.random.default_rng(0)
    data = {name: rng.integers(0, 256, (2, 3072), dtype=np.uint8) for name in names}
    batches = {name: pickle.dumps({"data": data[name], "labels": [index, 9]}) for index, name in enumerate(names)}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in {**batches, "readme.html": b"", "../../escaped": b""}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    server.files["cifar.tar.gz"] = packed.getvalue()
    source = torchvision_datasets.CIFAR10
    checksums = [[name, hashlib.md5(batch).hexdigest()] for name, batch in batches.items()]
    changes = {"train_list": checksums[:5], "test_list": checksums[5:], "filename": "cifar.tar.gz"}
    changes |= {"url": server.url("good") + "cifar.tar.gz", "tgz_md5": hashlib.md5(packed.getvalue()).hexdigest()}
    for key, value in changes.items():
        monkeypatch.setattr(source, key, value)
    root = tmp_path / "root"
    images = CIFAR10(str(root), (3, 32, 32), "resize").read()
    np.testing.assert_array_equal(images.pixels.flatten(1), np.concatenate(list(data.values())))
    assert images.labels[:, 0].tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9, 5, 9]
    assert (images.factors, images.num_test) == (("class",), 2)
    assert files(root / "cifar-10-batches-py") == names
    assert files(tmp_path) == sorted([*names, "cifar.tar.gz"])
    shutil.rmtree(root / "cifar-10-batches-py")
    CIFAR10(str(root), (3, 32, 32), "resize").read()
    assert server.requests == ["/good/cifar.tar.gz"]


def test_b3_two_runs_download_once_and_both_train(server, mnist, config, tmp_path):
    overrides = ["dataset=mnist", f"data_root={tmp_path / 'data'}", "dataset.val_size=8"]
    cfgs = [config(*overrides, run_dir=f"run{number}") for number in range(2)]
    children = [fork(lambda cfg=cfg: train(cfg)) for cfg in cfgs]
    assert [wait(child) for child in children] == [0, 0]
    assert sorted(server.requests) == sorted(f"/good/{name}.gz" for name in tiny_mnist.FILES)
    results = [(tmp_path / f"run{number}" / "result.json").read_text() for number in range(2)]
    assert all("val/loss" in result for result in results)


def test_b3_two_failures_at_once_leave_nothing(server, mnist, tmp_path):
    torchvision_datasets.MNIST.mirrors[:] = [server.url("stalls")]

    def fail():
        with pytest.raises(DataError):
            tiny_mnist.read(tmp_path / "new")

    children = [fork(fail) for _ in range(2)]
    assert [wait(child) for child in children] == [0, 0]
    assert files(tmp_path) == []


def test_a_command_that_only_looks_downloads_nothing(server, mnist, tmp_path):
    with no_downloads(), pytest.raises(DataError, match="MNIST was not found .*this command downloads nothing"):
        tiny_mnist.read(tmp_path)
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []
