"""An export from a stranger, or one that was damaged on its way, is refused in one line and executes nothing."""

import json
import pickle
import random
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from strangers import Payload

import vae_lab
from vae_lab.errors import RunError
from vae_lab.evaluation.evaluate import evaluate_runs
from vae_lab.runs.export import export
from vae_lab.runs.measurements import parameters_sha256
from vae_lab.runs.trained import content_sha256

pytestmark = pytest.mark.fault

FILES = ("config.json", "model.safetensors")


@pytest.fixture
def folder(trained, tmp_path):
    """An export, for an attacker to change."""
    export(trained, tmp_path / "export", "best")
    return tmp_path / "export"


def refusal(folder: Path, kind: type[Exception] = RunError) -> str:
    with pytest.raises(kind) as caught:
        vae_lab.load_run(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def rewrite(folder: Path, **changes) -> None:
    """Change `config.json` as one who knows its checksum; `a__b=c` sets content["a"]["b"]."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["sha256"]
    for keys, value in changes.items():
        *parents, key = keys.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        node[key] = value
    path.write_text(json.dumps({**content, "sha256": content_sha256(content)}))


@pytest.mark.parametrize("name", FILES)
def test_g1_flipped_bits_and_cut_files_are_noticed(name, folder):
    path, chance = folder / name, random.Random(0)
    whole, shared = path.read_bytes(), vae_lab.load_run(folder)
    for _ in range(40):
        damaged = bytearray(whole)
        place = chance.randrange(len(whole))
        if chance.random() < 0.7:
            damaged[place] ^= 1 << chance.randrange(8)
        else:
            del damaged[place:]
        path.write_bytes(damaged)
        try:
            read = vae_lab.load_run(folder)
        except RunError as error:
            message = str(error)
        else:
            # A space between two words of JSON may become another space.
            same = read.cfg == shared.cfg and parameters_sha256(read.vae) == parameters_sha256(shared.vae)
            message = name if same and name == "config.json" else ""
        assert name in message
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", FILES)
def test_g1_files_of_another_kind_are_refused(name, folder, tmp_path):
    path, marker = folder / name, tmp_path / "marker"
    pickled = pickle.dumps(Payload(marker))
    torch.save({"a": Payload(marker)}, path)
    zipped = path.read_bytes()
    html = b"<html><body>Sign in</body></html>"
    nested = b"[" * 100_000
    for content in (b"", b"{}", b"[]", b"null", b"\xff\xfe", html, pickled, zipped, nested, b'{"format": "vae_lab"}'):
        path.write_bytes(content)
        assert name in refusal(folder)
    path.unlink()
    refusal(folder)
    path.mkdir()
    refusal(folder)
    assert not marker.exists()


def tensors_file(header: dict | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, start, end, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "a length without end": tensors_file(b"{}", length=2**63),
    "no JSON": tensors_file(b"\x80\x04."),
    "overlapping tensors": tensors_file({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "an end over the file": tensors_file({"a": entry([4], 0, 16)}, bytes(8)),
    "a huge shape": tensors_file({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "a path as a name": tensors_file({"../../x": entry([1], 0, 4)}, bytes(4)),
    "no tensors": tensors_file({}),
}


@pytest.mark.parametrize("header", HEADERS)
def test_g1_a_hostile_file_of_weights_is_refused(header, folder):
    (folder / "model.safetensors").write_bytes(HEADERS[header])
    assert "model.safetensors" in refusal(folder)


def test_g2_weights_that_do_not_fit_are_refused_by_name(folder):
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    name = next(iter(weights))
    for changed in (
        {**weights, "extra": torch.zeros(1)},
        {key: value for key, value in weights.items() if key != name},
        {**weights, name: torch.zeros(3, 3)},
        {**weights, name: weights[name].double()},
    ):
        safetensors.torch.save_file(changed, path)
        assert "does not fit its config: " in refusal(folder)
    safetensors.torch.save_file({**weights, name: weights[name] + 1}, path)
    assert "its weights are not those that were exported" in refusal(folder)
    safetensors.torch.save_file(weights, path)
    rewrite(folder, config__latent_dim=7)
    assert "does not fit its config: " in refusal(folder)


TARGET = "hostile_module.Thing"


@pytest.mark.parametrize(
    "place",
    [
        *("config__model__encoder", "config__model__decoder", "config__posterior", "config__loss__likelihood"),
        *("config__dataset__source", "config__objective"),
    ],
)
def test_g3_a_hostile_target_in_an_export_is_refused(place, folder, marker):
    for value in ({"_target_": TARGET}, {"_target_": TARGET, "_partial_": True}, {"x": [{"_target_": TARGET}]}):
        rewrite(folder, **{place: value})
        with pytest.raises(ValueError, match=r"is not trusted|does not describe a model|dataset|objective"):
            evaluate_runs([str(folder)])
        assert not marker.exists()


def test_g3_text_in_an_export_takes_nothing_from_the_machine(folder, marker):
    whole = (folder / "config.json").read_text()
    attack = "${oc.create:{_target_: hostile_module.Thing}}"
    for text in ("${oc.env:HOME}", "${data_root}", "\\${oc.env:HOME}", "???", attack):
        for place in ("config__dataset__source__x", "config__dataset__fit", "config__model__encoder__activation"):
            rewrite(folder, **{place: text})
            assert "must not be left to be filled in" in refusal(folder)
            (folder / "config.json").write_text(whole)
    assert not marker.exists()


def test_g3_the_places_in_an_export_are_this_machines_own(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_DATA", str(tmp_path / "data"))
    rewrite(folder, config__dataset__root="/etc", config__dataset__source={"root": "/etc", "cache_dir": "/etc"})
    dataset = vae_lab.load_run(folder).cfg.dataset
    assert dataset.root == dataset.source.root == str(tmp_path / "data")
    assert dataset.source.cache_dir is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("format", "other"), ("format_version", 2), ("format_version", None), ("checkpoint", 3), ("epoch", "x")),
        *(("images", None), ("parameters_sha256", 1), ("config", []), ("config", {}), ("metrics", [1])),
        *(("config__dataset", None), ("config__dataset", [1]), ("config__seed", "x"), ("config__latent_dim", None)),
        *(("config__dataset__source", "x"), ("config__extra", 1)),
    ],
)
def test_g3_an_export_of_another_shape_is_refused(key, value, folder):
    rewrite(folder, **{key: value})
    assert "config.json" in refusal(folder)


def test_g3_a_link_out_of_an_export_is_refused(folder, tmp_path):
    (tmp_path / "outside").mkdir()
    (folder / "pictures").symlink_to(tmp_path / "outside")
    assert "is a link out of" in refusal(folder)
    with pytest.raises(RunError, match="is a link out of"):
        evaluate_runs([str(folder), "pictures=true"])
    assert not list((tmp_path / "outside").iterdir())
