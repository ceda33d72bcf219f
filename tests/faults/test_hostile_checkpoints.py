"""A checkpoint from a stranger executes nothing, whatever it is and wherever it comes in."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from strangers import DOORS, Payload

from vae_lab.errors import RunError
from vae_lab.runs.checkpoints import DurableCheckpointIO, load_checkpoint, newest_checkpoint

pytestmark = pytest.mark.fault

# G1: code in a checkpoint


def in_weights(content, bad):
    content["state_dict"][next(iter(content["state_dict"]))] = bad


def in_optimizer(content, bad):
    content["optimizer_states"][0]["state"][0]["exp_avg"] = bad


PLACES = {
    "weights": in_weights,
    "hparams": lambda content, bad: content.update(hyper_parameters={"model": bad}),
    "callbacks": lambda content, bad: content["callbacks"].update(Checkpoints={"best": bad}),
    "optimizer": in_optimizer,
    "loops": lambda content, bad: content["loops"].update(fit_loop=bad),
    "position": lambda content, bad: content["vae_lab"].update(images=bad),
    "a new key": lambda content, bad: content.update(extra=bad),
    "a key": lambda content, bad: content.update({(1, bad): 2}),
}


def put(run_dir: Path, place: str, payload: Payload) -> Path:
    """Hide a payload in the last checkpoint of a run; returns its path."""
    path = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    PLACES[place](content, payload)
    torch.save(content, path)
    return path


@pytest.mark.parametrize("place", PLACES)
def test_g1_a_pickle_payload_in_a_checkpoint_is_refused(place, run_dir, marker):
    path = put(run_dir, place, Payload(marker))
    refusal = rf"cannot load {path}: it holds more than tensors and plain containers"
    with pytest.raises(RunError, match=refusal) as caught:
        DurableCheckpointIO().load_checkpoint(path, weights_only=False)  # whatever Lightning asks for
    assert "weights_only" not in str(caught.value)  # which torch recommends to set
    assert not marker.exists()


@pytest.mark.parametrize("door", DOORS)
def test_g1_a_pickle_payload_is_refused_at_every_door(door, run_dir, marker, open_run):
    put(run_dir, "optimizer", Payload(marker))
    code, message = open_run(door, run_dir)
    assert not marker.exists()
    assert code == 5
    assert "last.ckpt" in message


def as_pickle(path: Path, payload: Payload) -> None:
    path.write_bytes(pickle.dumps(payload))


def as_legacy_file(path: Path, payload: Payload) -> None:
    torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)


def as_legacy_tar(path: Path, payload: Payload) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            content = pickle.dumps(payload, protocol=2)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def as_plain_zip(path: Path, payload: Payload) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "archive/data.pkl", "archive/constants.pkl", "archive/version", "archive/byteorder"):
            archive.writestr(name, pickle.dumps(payload, protocol=2))


def as_script(path: Path, payload: Payload) -> None:
    torch.save(payload, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(payload, protocol=2))


FORMS = (as_pickle, as_legacy_file, as_legacy_tar, as_plain_zip, as_script)


@pytest.mark.parametrize("write", FORMS)
@pytest.mark.filterwarnings("ignore:'torch.load' received a zip file:UserWarning")
def test_g1_a_pickle_in_another_form_is_refused(write, tmp_path, marker):
    for name in ("last", "previous", "best"):
        write(tmp_path / f"{name}.ckpt", Payload(marker))
    for read in (newest_checkpoint, lambda folder: load_checkpoint(folder / "last.ckpt")):
        with pytest.raises(RunError, match=r"last\.ckpt"):
            read(tmp_path)
    assert not marker.exists()


# G2: names of code in a checkpoint of plain containers


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used:UserWarning")
def test_g2_names_in_a_plain_checkpoint_import_nothing(door, run_dir, marker, open_run):
    path = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    names = {
        "_instantiator": "hostile_module.Thing",
        "_class_path": "hostile_module.Thing",
        "_target_": "hostile_module.Thing",
    }
    content.update(names, hyper_parameters=names, hparams_name="kwargs", hparams_type="hostile_module.Thing")
    content.update(datamodule_hyper_parameters=names, datamodule_hparams_type="hostile_module.Thing")
    content["vae_lab"].update(names)
    content["callbacks"]["hostile_module.Thing"] = names
    torch.save(content, path)
    code, message = open_run(door, run_dir)
    assert not marker.exists()
    assert code == 0, message


def without(key):
    return lambda content: content.pop(key)


def other_shape(content):
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = torch.zeros(3, 3)


def sparse(content):
    name = next(iter(content["state_dict"]))
    content["state_dict"][name] = content["state_dict"][name].to_sparse()


MISFITS = {
    "no weights": without("state_dict"),
    "no position": without("vae_lab"),
    "an empty checkpoint": lambda content: content.clear(),
    "a weight that is text": lambda content: content["state_dict"].update({next(iter(content["state_dict"])): "x"}),
    "a weight too many": lambda content: content["state_dict"].update(extra=torch.zeros(1)),
    "another shape": other_shape,
    "a sparse weight": sparse,
    "an epoch below zero": lambda content: content["vae_lab"].update(epoch=-7),
    "no learning rate": lambda content: content["vae_lab"].pop("lr"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize(
    ("door", "misfit"), [*(("load_run", misfit) for misfit in MISFITS), *((door, "no weights") for door in DOORS[:3])]
)
def test_g2_a_checkpoint_that_does_not_fit_is_refused_in_one_line(door, misfit, run_dir, open_run):
    path = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    MISFITS[misfit](content)
    torch.save(content, path)
    code, message = open_run(door, run_dir)
    assert code == 5, message
    assert "last.ckpt" in message
    assert "\n" not in message
