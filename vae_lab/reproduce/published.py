"""Targets that papers, examples and tutorials have published: recipes, figures, bands for another initialisation."""

import math
from collections.abc import Callable

import numpy as np

from vae_lab.reproduce.target import Check, Target, Trained

Runs = dict[str, Trained]


def last_metric(key: str, low: float, high: float) -> Callable[[Runs], list[Check]]:
    """Check a metric of the only run on the test images."""
    return lambda runs: [Check(f"{key}, test images", run.measured()[key], low, high) for run in runs.values()]


def gain(low: float, high: float) -> Callable[[Runs], list[Check]]:
    """Check by how much the elbo of the second run is above that of the first, on the test images."""

    def check(runs: Runs) -> list[Check]:
        (before, after) = (run.measured()["elbo"] for run in runs.values())
        return [Check(f"elbo of {' minus that of '.join(reversed(runs))}", after - before, low, high)]

    return check


def check_keras(runs: Runs) -> list[Check]:
    """The means over the 11th and 12th epoch."""
    (run,) = runs.values()
    means = {key: float(np.mean(run.values(f"train/{key}")[10:12])) for key in ("reconstruction", "kl")}
    return [
        Check("reconstruction in training", means["reconstruction"], 143.5, 150.5),
        Check("kl in training", means["kl"], 6.0, 7.0),
    ]


def check_tutorial(runs: Runs) -> list[Check]:
    """The loss in training of three epochs."""
    (run,) = runs.values()
    losses, bands = run.values("train/loss"), {1: (183.5, 3.0), 2: (164.8, 2.0), 10: (153.6, 1.5)}
    return [
        Check(f"loss in training, epoch {epoch}", losses[epoch - 1], figure - width, figure + width)
        for epoch, (figure, width) in bands.items()
    ]


def check_static(runs: Runs) -> list[Check]:
    """The elbo of the validation images after 5,000 and 10,000 steps."""
    (run,) = runs.values()
    elbo = run.history("val/elbo")
    return [
        Check(f"elbo, validation, step {s:,}", elbo[s], f - 1.5, f + 1.5) for s, f in ((5000, -112.6), (10000, -108.5))
    ]


def nll_check(samples: int, bands: dict[str, tuple[float, float]]) -> Callable[[Runs], list[Check]]:
    """Check `nll_isS` on all test images, by the name of the run."""
    members = (f"metrics.nll.samples={samples}",)

    def check(runs: Runs) -> list[Check]:
        key = f"nll_is{samples}"
        values = {name: run.measured("test", "nll", members)[key] for name, run in runs.items()}
        return [Check(f"{name}: {key}, test images", value, *bands[name]) for name, value in values.items()]

    return check


def check_order(runs: Runs) -> list[Check]:
    """Each run is better than the one before by two standard errors, paired over the test images."""
    nll, checks = {}, []
    for name, run in runs.items():
        run.measured("test", "nll", ("metrics.nll.samples=500",))
        nll[name] = run.per_image("nll_is500")
    names = list(runs)
    for worse, better in zip(names, names[1:], strict=False):
        difference = nll[worse] - nll[better]
        error = float(difference.std() / np.sqrt(len(difference)))
        checks.append(Check(f"nll_is500 of {worse} minus that of {better}", float(difference.mean()), 2 * error))
    return checks


def check_mig(runs: Runs) -> list[Check]:
    """The mean of the mutual information gap over the seeds rises with beta."""
    found: dict[str, list[float]] = {}
    for name, run in runs.items():
        scores = run.measured("train", "factors", ("metrics.factors.scores=[mig]",))
        found.setdefault(name.partition("_seed")[0], []).append(scores["mig"])
    first, *_, last = found
    rise = float(np.mean(found[last]) - np.mean(found[first]))
    return [Check(f"mig, mean over seeds, of {last} minus that of {first}", rise, 0.02)]


def check_book(runs: Runs) -> list[Check]:
    """A book of running means reconstructs better, and uses more of its codes."""
    gradient, ema = (runs[name].measured() for name in ("gradient", "ema"))
    return [
        Check("mse of gradient over that of ema, test images", gradient["mse"] / ema["mse"], 1.0),
        Check("perplexity of ema over that of gradient, test images", ema["perplexity"] / gradient["perplexity"], 1.0),
    ]


def check_digits(runs: Runs) -> list[Check]:
    """The program's classifier is sure of many samples, and calls all ten digits."""
    (run,) = runs.values()
    members = ("metrics.samples.scores=[confident,class_entropy]",)
    measured = run.measured("test", "samples", members).items()
    bands = {"confident": (0.45, 1.0), "class_entropy": (2.0, math.log(10)), "accuracy": (0.97, 1.0)}
    found = {word: (key, value) for key, value in measured for word in bands if key.startswith(word)}
    return [Check(f"{key}, test images", value, *bands[word]) for word, (key, value) in found.items()]


FLAX = "experiment=flax_vae_mnist dataset.val_size=0"
# Its loss is a sum over the 64 images of a batch, beside which its weight decay of 1e-5 is as much smaller.
TUTORIAL = "experiment=mlp_vae_mnist callbacks=default dataset.val_size=0 seed=1 optimizer.weight_decay=1.5625e-7"
KERAS = (
    "dataset=mnist dataset.val_size=0 model=conv model.channels=[32,64] model.kernel_sizes=[3,3] "
    "model.hidden_dims=[16] model.norm=null model.decoder.hidden_dims=[] model.decoder.channels=[32,64,64] "
    "model.decoder.kernel_sizes=[3,3,3] model.decoder.strides=[1,2,2] latent_dim=2 trainer.max_epochs=12"
)
STATIC = (
    "dataset=mnist dataset.val_size=10000 dataset.binarize=static model.hidden_dims=[256,256] latent_dim=128 "
    "trainer.max_steps=10000 trainer.max_epochs=100 trainer.val_check_interval=1000 "
    "trainer.check_val_every_n_epoch=null "
    "optimizer._target_=torch.optim.RMSprop ~optimizer.betas ~optimizer.fused +optimizer.centered=true"
)
PLANAR = "dataset=mnist dataset.val_size=0 model.hidden_dims=[512,256] latent_dim=20 trainer.max_epochs=10"
# The Gaussian's KL is sampled as the flow's, as in the source: in closed form it has less noise, and trains faster.
SAMPLED = "objective=iwae objective.samples=1"
IWAE = (
    "dataset=mnist dataset.val_size=0 dataset.binarize=dynamic model.hidden_dims=[200,200] model.activation=tanh "
    "latent_dim=50 optimizer/schedule=cosine"
)
VAMP = (
    "dataset=mnist dataset.val_size=10000 dataset.binarize=static dataset.batch_size=100 model.hidden_dims=[300,300] "
    "latent_dim=40 optimizer.lr=5e-4 loss.warmup_steps=5000 trainer.max_epochs=30"
)
SPRITES = "dataset=sprites dataset.image_size=32 dataset.val_size=0 latent_dim=10 objective=beta_tc"
SPRITES_FULL = (
    "dataset=sprites dataset.val_size=0 dataset.batch_size=64 latent_dim=10 objective=beta_tc model=conv "
    "model.channels=[32,32,64,64] model.kernel_sizes=[4,4,4,4] model.strides=[2,2,2,2] model.norm=null "
    "optimizer.lr=1e-4 trainer.max_steps=300000 trainer.max_epochs=-1"
)
BURDA = "Burda et al. 2016, table 1"
SHORT = "batches of 100 and a cosine from 1e-3 in place of batches of 20 and 3,280 epochs of falling rates"

TARGETS = {
    "flax": Target(
        "784-500-20 on grey MNIST has a test loss of about 104 after 10 epochs",
        "google/flax, examples/vae, README",
        "the source says 'around 104'; it reads one binarization of the images today, here they are grey, as in the "
        "PyTorch example that it follows; five runs of an early version of it had a deviation of 0.25",
        "cpu",
        2,
        {"run": FLAX},
        last_metric("loss", 102.5, 105.5),
    ),
    "tutorial_mlp": Target(
        "784-256-2 with seed 1 on all 60,000 images: losses of 183.5, 164.8 and 153.6 in epochs 1, 2 and 10",
        "a tutorial's fully connected VAE with two latents, run as its author wrote it",
        "with two latents the place of the digits is decided early, by the seed: 3, 2 and 1.5 nats",
        "cpu",
        2,
        {"run": TUTORIAL},
        check_tutorial,
        "by 0.25 nats, at epoch 10 only. The same seed is another draw here. A bare loop of these networks, this loss "
        "and optimizer had 181.7, 164.7 and 154.4 with one seed, within all bands; 64 times the weight "
        "decay gave 155.2 here. Other seeds of this target were not run",
    ),
    "static_mnist": Target(
        "784-256-256-128 on one binarization of MNIST: validation elbo -112.6 after 5,000 steps, -108.5 after 10,000",
        "github.com/jaanli/variational-autoencoder, its program in PyTorch, with centred RMSprop",
        "1.5 nats for another initialisation, another draw of the binarization and another order",
        "cpu",
        3,
        {"run": STATIC},
        check_static,
        "it is better than the source, by 1.73 nats where 1.5 are allowed, and only at the later step: at 5,000 it "
        "agrees to 0.02. At this constant rate the elbo wobbles (-108.5 at 8,000 and -107.1 at 9,000), and two outputs "
        "that the source published differ by 0.6; its scale is a softplus, here it is exp(log_var / 2), which was not "
        "tried. With Adam in place of RMSprop it was -106.1 and -102.3",
    ),
    "keras_conv": Target(
        "Keras' convolutional VAE with two latents: reconstruction 145.8 and KL 6.5 after 10 epochs of 70,000 images",
        "keras.io, examples/generative/vae, by F. Chollet",
        "published outputs of that program differ among themselves: 149.2 + 6.4 in that of keras.io, 145.8 + 6.5 in "
        "others; epochs 11 and 12 of 60,000 are its 10th of 70,000",
        "cpu",
        5,
        {"run": KERAS},
        check_keras,
    ),
    "planar_grey": Target(
        "8 planar maps are better than their Gaussian by about 1 nat on grey MNIST",
        "github.com/abdulfatir/planar-flow-pytorch, README: -99.37, and -98.23 with 20 maps that all images share",
        "0.8 nats to either side: the difference of two runs, each with its own noise. The Gaussian's KL is sampled "
        "as the flow's is, and as in the source; the recipe first had its closed form, and failed with a gain of 0.12",
        "cpu",
        8,
        {"gaussian": f"{PLANAR} {SAMPLED}", "planar": f"{PLANAR} posterior=planar"},
        gain(0.2, 1.8),
    ),
    "planar_thresholded": Target(
        "8 planar maps are better than their Gaussian by about 2.8 nats on thresholded MNIST",
        "github.com/abdulfatir/planar-flow-pytorch, README: -84.60, and -81.83 with 20 maps that all images share",
        "1.4 nats to either side: the difference of two runs, each with its own noise. The Gaussian's KL is sampled "
        "as the flow's is, and as in the source; the recipe first had its closed form, and failed with a gain of -1.23",
        "cpu",
        8,
        {
            "gaussian": f"{PLANAR} {SAMPLED} dataset.binarize=threshold",
            "planar": f"{PLANAR} dataset.binarize=threshold posterior=planar",
        },
        gain(1.4, 4.2),
        "by 0.17 nats, and the sign is right. The source has 20 maps and does not say how long it trained: 10 epochs, "
        "its default, do not lead to its figures, in a bare loop of its networks to -87.1 without and -86.4 with the "
        "maps that all images share, one run each. That the closed form wins is not the maps: the same "
        "Gaussian's loss in training is 85.3 in epoch 10 with it, and 87.8 with the sampled KL",
    ),
    "iwae_vae_1": Target(
        "the one-layer VAE of the IWAE paper has a negative log-likelihood of 86.76 on dynamically binarized MNIST",
        BURDA,
        f"1 nat: {SHORT}",
        "cpu",
        35,
        {"vae_1": f"{IWAE} dataset.batch_size=100 trainer.max_epochs=300"},
        nll_check(5000, {"vae_1": (85.76, 87.76)}),
        "by 1.16 nats: 300 epochs are too short. The paper takes 9.8 million steps, these are 180,000, and the loss in "
        "training still falls with their number: 94.6 in epoch 100 of 100 and 91.7 in epoch 300 of 300, each at the "
        "end of its cosine. A larger rate was not ahead on its way: with 3e-3 the loss was 93.25 in epoch 244 of "
        "300, with 1e-3 and a cosine over 500 epochs 93.21 in epoch 247",
    ),
    "iwae_order": Target(
        "IWAE with 5 samples is better than a VAE with 5, and that than one with 1",
        BURDA,
        f"each by two standard errors of the difference, paired over all test images; {SHORT}, for 100 epochs",
        "cpu",
        40,
        {
            "vae_1": f"{IWAE} dataset.batch_size=100 trainer.max_epochs=100",
            "vae_5": f"{IWAE} dataset.batch_size=100 trainer.max_epochs=100 objective=miwae objective.groups=5 "
            "objective.samples=1",
            "iwae_5": f"{IWAE} dataset.batch_size=100 trainer.max_epochs=100 objective=iwae objective.samples=5",
        },
        check_order,
    ),
    "vampprior": Target(
        "a VampPrior is better than the standard prior with the same budget, on static MNIST",
        "Tomczak and Welling 2018, table 1",
        "at least 0.3 nats: the paper gains 3 in 2,000 epochs, these are 30",
        "cpu",
        15,
        {"standard": VAMP, "vamp": f"{VAMP} prior=vamp"},
        gain(0.3, 6.0),
    ),
    "sprites_mig": Target(
        "the mutual information gap on sprites rises with the weight of the total correlation",
        "Chen et al. 2018, figure 4",
        "by 0.02 at least, the mean over three seeds: seeds differ as much as weights do",
        "cpu",
        15,
        {
            f"beta_{beta}_seed_{seed}": f"{SPRITES} objective.beta={beta} seed={seed} trainer.max_epochs=60"
            for beta in (1, 6)
            for seed in (0, 1, 2)
        },
        check_mig,
        "by 0.034, and four times the steps do not mend it: after 10,560 the gap is 0.045 with 6 and 0.048 with 1 "
        "(seed 0). Weight 6 leaves three latents in use and weight 1 six, but neither gives a factor a latent of its "
        "own; with convolutions and weight 6, where the gap is 0.031, the vertical position correlates by 0.46 to 0.77 "
        "with each of four latents. Published runs take 300,000 steps, as sprites_full does",
    ),
    "vq_ema": Target(
        "a book of running means, with revived codes, is better than one trained by gradient, on CIFAR-10 pictures",
        "van den Oord et al. 2017, appendix A.1; Razavi et al. 2019",
        "better in both: no figure is published for these networks",
        "cpu",
        40,
        {
            "gradient": "experiment=vq_vae_cifar posterior.decay=null trainer.max_epochs=20",
            "ema": "experiment=vq_vae_cifar trainer.max_epochs=20",
        },
        check_book,
    ),
    "gan_digits": Target(
        "a classifier of digits is sure of a GAN's samples",
        "a PyTorch Lightning tutorial's GAN on MNIST, 20 epochs",
        "no figure is published; the same networks in a plain loop had 0.45 of their samples called a digit with more "
        "than 0.9 after 6 epochs, 0.94 of the images, and an entropy of 2.1 to 2.2 of at most 2.303; after 20 not less",
        "cpu",
        15,
        {"run": "experiment=gan_mnist"},
        check_digits,
    ),
    "iwae_full": Target(
        "the one-layer models of the IWAE paper, 3,280 epochs: 86.76, 85.54 and 84.78",
        BURDA,
        "0.6 nats: a cosine in place of eight stages; replications differ from the paper by 0.4",
        "gpu",
        900,
        {
            "vae_1": f"{IWAE} dataset.batch_size=20 trainer.max_epochs=3280",
            "iwae_5": f"{IWAE} dataset.batch_size=20 trainer.max_epochs=3280 objective=iwae objective.samples=5",
            "iwae_50": f"{IWAE} dataset.batch_size=20 trainer.max_epochs=3280 objective=iwae objective.samples=50",
        },
        nll_check(5000, {"vae_1": (86.16, 87.36), "iwae_5": (84.94, 86.14), "iwae_50": (84.18, 85.38)}),
    ),
    "miwae_8_8": Target(
        "MIWAE with 8 groups of 8 has a negative log-likelihood of about 85.0 on dynamically binarized MNIST",
        "Rainforth et al. 2018, table 1: 84.97",
        "0.6 nats: a cosine in place of eight stages",
        "gpu",
        900,
        {
            "run": f"{IWAE} dataset.batch_size=20 trainer.max_epochs=3280 "
            "objective=miwae objective.groups=8 objective.samples=8"
        },
        nll_check(5000, {"run": (84.37, 85.57)}),
    ),
    "hierarchical": Target(
        "two layers of latents reach 85.33 on dynamically binarized MNIST",
        f"{BURDA}, two stochastic layers",
        "1 nat: the paper infers from the bottom up with two networks, here inference is from the top down",
        "gpu",
        600,
        {
            "run": f"{IWAE} dataset.batch_size=20 latent_dim=150 posterior=hierarchical prior=hierarchical "
            "posterior.top_dim=50 prior.top_dim=50 posterior.hidden_dim=100 prior.hidden_dim=100 "
            "trainer.max_epochs=3280"
        },
        nll_check(5000, {"run": (84.33, 86.33)}),
    ),
    "vq_cifar10": Target(
        "a VQ-VAE on CIFAR-10 has 4.67 bits for each dimension",
        "van den Oord et al. 2017, section 4.1",
        "0.25 bits: the paper does not say what the likelihood of its decoder is",
        "gpu",
        120,
        {"run": "experiment=vq_vae_cifar dataset=cifar10 loss=discretized_logistic trainer.max_epochs=250"},
        lambda runs: [
            Check("bits_per_dim, test images", runs["run"].measured("test", "all")["bits_per_dim"], 4.42, 4.92)
        ],
    ),
    "sprites_full": Target(
        "the mutual information gap on sprites of 64x64 pixels after 300,000 steps of 64 images rises with the weight",
        "Chen et al. 2018, figure 4; the budget of Locatello et al. 2019, appendix H",
        "by 0.05 at least, the mean over three seeds: seeds differ as much as weights do",
        "gpu",
        900,
        {
            f"beta_{beta}_seed_{seed}": f"{SPRITES_FULL} objective.beta={beta} seed={seed}"
            for beta in (1, 6)
            for seed in (0, 1, 2)
        },
        check_mig,
    ),
}
