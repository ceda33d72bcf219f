import contextlib
import json
import sys

import pytest
import torch
from omegaconf import OmegaConf
from strangers import Payload

from vae_lab.config.instantiate import instantiate, is_trusted
from vae_lab.models.networks.mlp import MLPEncoder
from vae_lab.models.posteriors import Gaussian

pytestmark = pytest.mark.fault
REFUSED = r"is not trusted|is not a trusted class|cannot import"


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that every attack below writes if it succeeds, with what the attacks need around it."""
    path = tmp_path / "marker"
    touch = f"open({str(path)!r}, 'w').close()\n"
    (tmp_path / "hostile_module.py").write_text(touch + "class Thing:\n    pass\n")
    (tmp_path / "vae_lab_extras.py").write_text(touch + "class Thing:\n    pass\n")  # begins like a trusted package
    (tmp_path / "hostile_later.py").write_text(f"def attack(*args, **kwargs):\n    {touch}")
    (tmp_path / "hubconf.py").write_text(f"def attack():\n    {touch}")
    torch.save(Payload(path), tmp_path / "payload.ckpt")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    for name in ("hostile_module", "vae_lab_extras", "hostile_later", "hubconf"):
        sys.modules.pop(name, None)


# Each target with arguments with which it would write the marker, where it can.
HOSTILE = {
    "os.system": {"command": "touch MARKER"},
    "builtins.open": {"_args_": ["MARKER", "w"]},
    "builtins.eval": {"_args_": ["open('MARKER', 'w')"]},
    "pathlib.Path.touch": {"self": "MARKER"},
    "subprocess.run": {"args": ["touch", "MARKER"]},
    "torch.load": {"f": "FOLDER/payload.ckpt", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": "FOLDER", "model": "attack", "source": "local"},
    "urllib.request.urlopen": {"url": "file://MARKER"},
    "hydra.utils.call": {"config": {}},
    "hostile_module.Thing": {},
    "vae_lab_extras.Thing": {},
    "hostile_later.attack": {},
    # Reachable through a trusted package, but not of it.
    "vae_lab.runs.folder.os.system": {"command": "touch MARKER"},
    "vae_lab.runs.folder.Path": {"_args_": ["MARKER"]},
    "vae_lab.runs.checkpoints.torch.load": {"f": "FOLDER/payload.ckpt", "weights_only": False},
    "vae_lab.runs.checkpoints.load_checkpoint": {"path": "FOLDER/payload.ckpt"},  # ours, but not a class
    "vae_lab.runs.checkpoints.__builtins__.open": {"_args_": ["MARKER", "w"]},
    "vae_lab.models.posteriors.Gaussian.__class__": {"_args_": ["Thing", [], {}]},
    "vae_lab.models.posteriors.Gaussian.__call__": {"self": 1, "params": 2},
    "vae_lab.models.posteriors.__loader__.__class__": {"_args_": ["hostile_module", "FOLDER/hostile_module.py"]},
    # Of a trusted package, but able to call, write or send what they are given.
    "lightning.pytorch.callbacks.LambdaCallback": {},
    "lightning.pytorch.callbacks.ModelCheckpoint": {"dirpath": "FOLDER"},
    "lightning.pytorch.callbacks.prediction_writer.BasePredictionWriter": {},
    "lightning.pytorch.loggers.WandbLogger": {"save_dir": "FOLDER"},
    # What a killed run does not continue exactly with.
    "lightning.pytorch.callbacks.GradientAccumulationScheduler": {"scheduling": {0: 1}},
    "lightning.pytorch.callbacks.ModelPruning": {"pruning_fn": "l1_unstructured"},
    "lightning.pytorch.callbacks.StochasticWeightAveraging": {"swa_lrs": 0.1},
    "torch.optim.LBFGS": {"params": []},
    "torch.optim.swa_utils.AveragedModel": {"model": 1},
    "vae_lab.runs.folder.RunFolder": {"folder": "FOLDER"},
    "vae_lab.loggers.wandb.WandbProcess": {"folder": "FOLDER"},
    "vae_lab.runs.checkpoints.DurableCheckpointIO": {},
    "lightning.pytorch.callbacks.model_checkpoint.os.system": {"command": "touch MARKER"},
    "torch.optim.adam.torch.load": {"f": "FOLDER/payload.ckpt", "weights_only": False},
    # Not a name of anything.
    "vae_lab": {},
    "vae_lab..os.system": {"command": "touch MARKER"},
    ".os.system": {"command": "touch MARKER"},
    "": {},
}


def created(node: dict) -> str:
    """An interpolation that makes the node from text."""
    text = json.dumps(node).replace("'", r"\'")
    return f"${{oc.create:'{text}'}}"


PLACES = {
    "root": lambda node: node,
    "in a dict": lambda node: {"a": {"b": node}},
    "in a list": lambda node: {"a": [1, [node]]},
    "as an argument": lambda node: {"_target_": "vae_lab.models.posteriors.Gaussian", "max_log_var": node},
    "partial": lambda node: {**node, "_partial_": True},
    "not recursive": lambda node: {"_target_": "vae_lab.models.posteriors.Gaussian", "_recursive_": False, "x": node},
    "interpolated": lambda node: {"name": node["_target_"], "a": {**node, "_target_": "${name}"}},
    "interpolated node": lambda node: {"node": node, "a": "${node}"},
    "created": lambda node: {"a": created(node)},
    "created in a list": lambda node: {"a": [created(node)]},
}


def aimed(value, marker):
    """Replace the placeholders in the arguments of an attack."""
    if isinstance(value, dict):
        return {key: aimed(child, marker) for key, child in value.items()}
    if isinstance(value, list):
        return [aimed(child, marker) for child in value]
    if isinstance(value, str):
        return value.replace("MARKER", str(marker)).replace("FOLDER", str(marker.parent))
    return value


IN_PLACES = [(target, place) for target in ("builtins.open", "hostile_module.Thing") for place in PLACES]


@pytest.mark.parametrize(("target", "place"), [*((target, "root") for target in HOSTILE), *IN_PLACES])
def test_hostile_targets_are_refused_before_anything_runs(target, place, marker):
    node = {"_target_": target, **aimed(HOSTILE[target], marker)}
    with pytest.raises(ValueError, match=REFUSED):
        instantiate(OmegaConf.create(PLACES[place](node)), "node")
    assert not marker.exists()


@pytest.mark.parametrize("target", ["???", 7, None, True, ["os.system"], {"_target_": "os.system"}])
def test_a_target_must_be_a_name(target):
    with pytest.raises(ValueError, match="is not trusted"):
        instantiate(OmegaConf.create({"_target_": target}), "node")


@pytest.mark.parametrize("backslashes", [1, 2, 3, 7, 15])
def test_an_escaped_interpolation_does_not_become_a_target(marker, backslashes):
    # It is text after the first resolution; a second one, behind the check, would make a node of it.
    text = "\\" * backslashes + "${oc.create:{_target_: hostile_later.attack}}"
    for config in ({"a": text}, {"a": [text]}, {"_target_": "vae_lab.models.posteriors.Gaussian", "max_log_var": text}):
        with contextlib.suppress(ValueError):  # refused, or left as text
            instantiate(OmegaConf.create(config), "node")
        assert not marker.exists()


def test_the_message_names_the_place_and_the_remedy():
    config = OmegaConf.create({"a": [{"b": {"_target_": "os.system"}}]})
    with pytest.raises(ValueError, match=r"^callbacks\.a\.0\.b: _target_ 'os\.system' is not trusted.*VAE_LAB_TRUST="):
        instantiate(config, "callbacks")


def test_good_targets_are_built():
    config = OmegaConf.create(
        {"bound": 5.0, "a": [{"_target_": "vae_lab.models.posteriors.Gaussian", "max_log_var": 5.0}]}
    )
    (posterior,) = instantiate(config, "node")["a"]
    assert type(posterior) is Gaussian
    assert posterior.max_log_var == 5
    node = OmegaConf.create(
        {"x": 3.0, "g": {"_target_": "vae_lab.models.posteriors.Gaussian", "max_log_var": "${x}"}}
    ).g
    assert instantiate(node, "posterior").max_log_var == 3
    assert instantiate(OmegaConf.create({"a": None, "b": [1, {"c": 2}]}), "node") == {"a": None, "b": [1, {"c": 2}]}
    assert instantiate(OmegaConf.create({}), "node") == {}


@pytest.mark.parametrize(
    "target",
    [
        "lightning.pytorch.callbacks.early_stopping.EarlyStopping",
        "lightning.pytorch.loggers.CSVLogger",
        "lightning.pytorch.trainer.trainer.Trainer",
        "torch.optim.Adam",
        "vae_lab.loggers.wandb.WandbLogger",
        "vae_lab.models.networks.mlp.MLPEncoder",
    ],
)
def test_trusted_classes_pass_under_every_name(target):
    assert is_trusted(target)
    instantiate(OmegaConf.create({"_target_": target, "_partial_": True}), "node")


def test_further_arguments_reach_the_constructor_as_they_are(monkeypatch):
    seen = {}
    monkeypatch.setattr(MLPEncoder, "__init__", lambda self, **kwargs: seen.update(kwargs))
    config = OmegaConf.create(
        {"_target_": "vae_lab.models.networks.mlp.MLPEncoder", "hidden_dims": [3, 4], "a": {"b": [1]}}
    )
    given = object()
    instantiate(config, "model.encoder", image_shape=(1, 2, 2), given=given)
    assert seen["given"] is given
    assert type(seen["hidden_dims"]) is list
    assert type(seen["a"]) is dict
    assert type(seen["a"]["b"]) is list
    assert tuple(seen["image_shape"]) == (1, 2, 2)


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text("")
    source = "from subprocess import Popen\nclass Flow:\n    def __init__(self, n):\n        self.n = n\n"
    (tmp_path / "my_package" / "flows.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


def test_a_users_package_is_trusted_when_named(package, monkeypatch):
    config = OmegaConf.create({"_target_": "my_package.flows.Flow", "n": 4})
    monkeypatch.delenv("VAE_LAB_TRUST", raising=False)
    with pytest.raises(ValueError, match="is not trusted"):
        instantiate(config, "posterior")
    assert "my_package" not in sys.modules
    monkeypatch.setenv("VAE_LAB_TRUST", "another, my_package")
    assert instantiate(config, "posterior").n == 4
    with pytest.raises(ValueError, match="is not a trusted class"):
        instantiate(OmegaConf.create({"_target_": "my_package.flows.Popen", "args": ["true"]}), "posterior")


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_an_empty_trust_trusts_nothing_more(value, monkeypatch):
    monkeypatch.setenv("VAE_LAB_TRUST", value)
    assert not is_trusted("os.system")
    assert not is_trusted(".os")
    assert is_trusted("vae_lab.models.posteriors.Gaussian")


GAUSSIAN = {"_target_": "vae_lab.models.posteriors.Gaussian"}


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        (GAUSSIAN | {"max_log_var": -1}, "posterior", r"posterior\.max_log_var must be"),
        (GAUSSIAN | {"max_log_var": "a"}, "posterior", "posterior: .*'<' not supported"),
        ({"_target_": "vae_lab.objectives.elbo.ELBO"}, "objective", "objective: .*missing"),
        ({"a": GAUSSIAN | {"nope": 1}}, "callbacks", "callbacks.*'nope'"),
        ({"_target_": "torch.optim.SGD", "params": [], "lr": 1.0}, "optimizer", "optimizer: .*empty parameter list"),
        ({"_target_": "lightning.pytorch.Trainer", "accelerator": "abacus"}, "trainer", "trainer: .*abacus"),
        ({"_target_": "lightning.pytorch.Trainer", "max_epoch": 3}, "trainer", "trainer: .*'max_epoch'"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "x", "mode": "up"}, "stop", "stop: .*up"),
        (
            {"_target_": f"{GAUSSIAN['_target_']}s"},
            "posterior",
            "cannot import .*Gaussians: there is no such",
        ),
        ({"_target_": "vae_lab.models.nothing.Encoder"}, "model.encoder", "model.encoder: cannot import .*Encoder: "),
    ],
)
def test_what_a_constructor_refuses_comes_out_as_one_line_with_its_key(config, key, message):
    with pytest.raises(ValueError, match=message) as caught:
        instantiate(OmegaConf.create(config), key)
    assert type(caught.value) is ValueError
    assert len(str(caught.value).splitlines()) == 1
