"""Run folders as training would leave them, written at once, for tests of what reads many of them."""

import hashlib
import json
from pathlib import Path

import yaml

CONFIG = {
    "latent_dim": 2, "data_root": "${oc.env:VAE_LAB_DATA,data}", "run_dir": "${hydra:runtime.output_dir}",
    "dataset": {"image_size": 8, "binarize": "none", "source": {"_target_": "vae_lab.data.standard.Digits"}},
    "model": {
        "hidden_dims": [16],
        "encoder": {"_target_": "vae_lab.models.networks.mlp.MLPEncoder", "hidden_dims": "${model.hidden_dims}"},
        "decoder": {"_target_": "vae_lab.models.networks.mlp.MLPDecoder"},
    },
    "loss": {
        "likelihood": {"_target_": "vae_lab.models.likelihoods.Bernoulli"}, "measure": "probability", "KLD_weight": 1.0,
    },
    "objective": {"_target_": "vae_lab.objectives.elbo.ELBO", "kld_weight": "${loss.KLD_weight}"},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.001, "schedule": {}},
    "trainer": {"max_epochs": 3}, "logger": {},
}  # fmt: skip
CHOICES = {
    "experiment": None, "callbacks": "default", "trainer": "default", "optimizer": "adam", "optimizer/schedule": "none",
    "objective": "elbo", "loss": "bce", "posterior": "gaussian", "model": "mlp", "dataset": "digits",
    "hydra/launcher": "local",
}  # fmt: skip
CONV = {"model": "conv"} | {
    f"model.{part}._target_": f"vae_lab.models.networks.conv.Conv{part.title()}" for part in ("encoder", "decoder")
}
GAUSSIAN = {
    "loss": "mse",
    "loss.likelihood._target_": "vae_lab.models.likelihoods.Gaussian",
    "loss.measure": "density",
}


def fingerprint(config: dict) -> str:
    """One for each set of images: what is read, and how large it is."""
    dataset = config["dataset"]
    return hashlib.sha256(f"{dataset['source']}{dataset['image_size']}".encode()).hexdigest()[:32]


def write_run(
    folder: Path,
    seed: int = 0,
    elbo: float | None = -100.0,
    mse: float = 0.02,
    state: str = "completed",
    reason: str = "",
    images: str | None = None,
    **settings,
) -> Path:
    """Write a run folder; `settings` are dotted keys with __ for the dots, or a dict of them as `changes`.

    The name of a group is a choice and no setting: `{"model": "conv"}`.
    """
    config, choices = json.loads(json.dumps(CONFIG | {"seed": seed})), dict(CHOICES)
    for key, value in {**settings.pop("changes", {}), **settings}.items():
        if key in CHOICES:
            choices[key] = value
            continue
        *path, last = key.replace("__", ".").split(".")
        node = config
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / ".hydra" / "choices.yaml").write_text(yaml.safe_dump(choices, sort_keys=False))
    status = {"state": state, "reason": reason, "images": fingerprint(config) if images is None else images}
    (folder / "status.json").write_text(json.dumps(status))
    rows = []
    for epoch in range(3):
        values = {"elbo": elbo - 10 * (2 - epoch), "reconstruction": 5 - elbo, "kl": -0.05 * elbo} if elbo else {}
        values |= {"mse": mse + 0.01 * (2 - epoch), "active_units": 2.0}
        rows.append({"step": 10 * epoch + 10, **{f"val/{k}": v for k, v in values.items()}, "epoch": epoch + 1})
        trained = {"train/loss": 1.0} | ({"train/elbo": values["elbo"] + 1} if elbo else {})
        rows.append({"step": 10 * epoch + 10, **trained, "epoch": epoch + 1})
    for i, row in enumerate(rows):
        row["time"] = 1.7e9 + 5 * i
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if state == "completed":
        final = {key: value for key, value in rows[-2].items() if key.startswith("val/")}
        (folder / "result.json").write_text(
            json.dumps({**final, "epochs": 3, "images_per_second": 1000.0 + seed, "train_seconds": 10.0 - seed})
        )
    return folder


def write_sweep(folder: Path) -> Path:
    """Write a sweep of two models, two likelihoods and three seeds; one failed, one is running."""
    (folder).mkdir(parents=True)
    for m, (model, changes) in enumerate((("mlp", {}), ("conv", CONV))):
        for name, offset, loss in (("bce", 0, {}), ("mse", -400, GAUSSIAN)):
            for seed in range(3):
                state, reason = ("failed", "ran out of <b>luck</b>") if (m, name, seed) == (1, "mse", 2) else ("", "")
                state = "running" if (m, name, seed) == (1, "mse", 1) else state or "completed"
                elbo, mse = (
                    offset - 100 + 5 * m + 0.1 * seed**2 * m + seed,
                    0.03 - 0.005 * m - offset * 5e-6 + 0.0001 * seed**2 * m,
                )
                write_run(folder / f"{model},{name},{seed}", seed, elbo, mse, state, reason, changes=changes | loss)
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    return folder
