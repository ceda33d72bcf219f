"""A VAE trained with Lightning and Hydra as their tutorials show it: what `faults.py` compares vae-lab with.

It is meant to be what a competent user writes: seeded, configured, with the best and the last checkpoint kept and
`ckpt_path=last` to continue. Nothing in it is made to fail.

    python benchmarks/plain.py dataset.root=FOLDER_OF_CLASS_FOLDERS
"""

import hydra
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningModule, seed_everything
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, random_split
from torchvision import transforms


class VAE(LightningModule):
    """One hidden layer each way, Bernoulli pixels in [0, 1], the negative ELBO in nats per image."""

    def __init__(self, channels: int, image_size: int, hidden_dim: int, latent_dim: int, kld_weight: float, lr: float):
        super().__init__()
        self.save_hyperparameters()
        shape = (channels, image_size, image_size)
        pixels = channels * image_size**2
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 2 * latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent_dim, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, pixels), nn.Unflatten(1, shape)
        )

    def loss(self, batch: tuple[Tensor, Tensor], name: str) -> Tensor:
        x, _ = batch
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        logits = self.decoder(mean + torch.exp(0.5 * log_var) * torch.randn_like(mean))
        reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum() / len(x)
        loss = reconstruction + self.hparams.kld_weight * kl
        self.log_dict({name: loss, f"{name}_reconstruction": reconstruction, f"{name}_kl": kl})
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch, "train_loss")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.loss(batch, "val_loss")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


@hydra.main(version_base="1.3", config_path="plain_conf", config_name="config")
def main(cfg: DictConfig) -> None:
    seed_everything(cfg.seed, workers=True)
    size = cfg.model.image_size
    transform = transforms.Compose([transforms.Resize((size, size)), transforms.ToTensor()])
    dataset = instantiate(cfg.dataset, transform=transform)
    train, val = random_split(dataset, [0.9, 0.1])
    loader = {"batch_size": cfg.batch_size, "num_workers": cfg.num_workers}
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=instantiate(cfg.logger))
    trainer.fit(
        VAE(**cfg.model), DataLoader(train, shuffle=True, **loader), DataLoader(val, **loader), ckpt_path=cfg.ckpt_path
    )


if __name__ == "__main__":
    main()
