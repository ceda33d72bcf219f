"""Every number that the program reports: its unit, which way is better, and what two runs must share to compare it.

This is the only place that knows. A metric is named `{stage}/{key}`, with `train`, `train_step`, `val` or `test` as
stage; facts of a run (`images_per_second`) have no stage. Nothing here imports torch, so that a comparison starts fast.
"""

import re
from typing import Literal, NamedTuple

Comparable = Literal["always", "images", "likelihood", "weights"]


class Metric(NamedTuple):
    """What is known of one metric.

    Attributes:
        unit: as it is shown behind the value and on axes.
        better: `higher`, `lower`, or None where no value is better than another.
        comparable: what two runs must share. `always`: nothing. `images`: the images that were measured.
            `likelihood`: these and the kind of likelihood, because the log of a density and the log of a probability
            differ by what the unit of grey is, hundreds of nats that say nothing about the model. `weights`: all that
            and the weights in the loss.
        meaning: one line.
    """

    unit: str
    better: Literal["higher", "lower"] | None
    comparable: Comparable
    meaning: str


NATS = "nats per image"
# In the order in which tables show them.
CATALOGUE = {
    "loss": Metric(f"{NATS}, weighted", "lower", "weights", "what is minimised; outside training without free bits"),
    "elbo": Metric(NATS, "higher", "likelihood", "lower bound on log p(x): one sample, weight 1"),
    "bound_isK": Metric(NATS, "higher", "likelihood", "lower bound on log p(x): K samples, importance-weighted"),
    "nll_isS": Metric(NATS, "lower", "likelihood", "-log p(x), estimated with S samples of each image"),
    "reconstruction": Metric(NATS, "lower", "likelihood", "-E log p(x given z)"),
    "kl": Metric(NATS, None, "images", "KL(q(z given x), prior)"),
    "kl_top": Metric(NATS, None, "images", "KL(q(top layer given x), N(0, I)) of two layers of latents"),
    "mse": Metric("per pixel", "lower", "images", "squared error of the reconstruction from the code"),
    "active_units": Metric("latents", None, "images", "latents with Var_x(E[z given x]) > 0.01"),
    "kl_z": Metric(NATS, None, "images", "KL of one latent, kl_z0, kl_z1, ..."),
    "mutual_information": Metric("nats", None, "images", "I(x; z) of the first 2,000 images, at most log n"),
    "total_correlation": Metric("nats", None, "images", "dependence of the latents on each other in q(z)"),
    "mmd": Metric("", "lower", "images", "squared distance of q(z) and the prior; unbiased, can be below 0"),
    "psnr": Metric("dB", "higher", "images", "10 log10(1 / mse) of the reconstruction, mean over images"),
    "ssim": Metric("", "higher", "images", "structural similarity of the reconstruction, at most 1"),
    "bits_per_dim": Metric("bits", "lower", "images", "-elbo / (C H W log 2), of a likelihood of 256 levels"),
    "linear_probe": Metric("accuracy", "higher", "images", "labels from codes, by logistic regression"),
    "knn": Metric("accuracy", "higher", "images", "labels from codes, by the nearest neighbours"),
    "mig": Metric("", "higher", "images", "gap between the two latents that know most of a factor, at most 1"),
    "dci": Metric("", "higher", "images", "disentanglement: each latent helps to predict one factor, at most 1"),
    "dci_completeness": Metric("", "higher", "images", "each factor is predicted by one latent, at most 1"),
    "dci_informativeness": Metric("accuracy", "higher", "images", "factors from codes, by a random forest"),
    "sap": Metric("", "higher", "images", "gap between the two latents that alone predict a factor best, at most 1"),
    "factor_score": Metric("accuracy", "higher", "images", "factor that images share, by the latent that varies least"),
    "beta_score": Metric("accuracy", "higher", "images", "factor that pairs of images share, by their differences"),
    "modularity": Metric("", "higher", "images", "each latent knows of one factor only, at most 1"),
    "fid": Metric("", "lower", "images", "Frechet distance of samples and images, in features of a network"),
    "kid": Metric("", "lower", "images", "squared MMD of samples and images; unbiased, can be below 0"),
    "precision": Metric("share", "higher", "images", "samples that are near an image"),
    "recall": Metric("share", "higher", "images", "images that are near a sample"),
    "density": Metric("", "higher", "images", "in how many balls of images a sample lies, over their neighbours"),
    "coverage": Metric("share", "higher", "images", "images with a sample among their nearest neighbours"),
    "confident": Metric("share", "higher", "images", "samples of which a classifier is sure by more than 0.9"),
    "class_entropy": Metric(
        "nats", "higher", "images", "entropy of the classes that samples are called, at most log C"
    ),
    "accuracy": Metric("accuracy", None, "images", "of the classifier whose features measure samples"),
    "clamped": Metric("latents per image", "lower", "images", "latents whose log-variance lies on its bound"),
    "information_estimate": Metric(NATS, None, "weights", "mutual information of x and z, from batches"),
    "correlation_estimate": Metric(NATS, None, "weights", "total correlation of z, from batches"),
    "dimension_kl_estimate": Metric(NATS, None, "weights", "KL of each latent's aggregate posterior, from batches"),
    "covariance_penalty": Metric("", None, "weights", "distance of the latents' covariance from I, weighted"),
    "mmd_estimate": Metric("", "lower", "weights", "squared maximum mean discrepancy of codes and prior, from batches"),
    "feature_distance": Metric(NATS, "lower", "weights", "distance of features of image and reconstruction, weighted"),
    "code_norm": Metric("", None, "images", "half the squared norm of the code"),
    "decoder_norm": Metric("", None, "weights", "what keeps the decoder smooth, unweighted"),
    "commitment": Metric(f"{NATS}, weighted", None, "weights", "squared distance of encoder outputs to their codes"),
    "codebook": Metric(NATS, None, "images", "the same distance, for a book that is trained by gradient"),
    "perplexity": Metric("codes", "higher", "images", "exp of the entropy of the codes in use"),
    "dead_codes": Metric("codes", "lower", "images", "codes of the book that no image has"),
    "temperature": Metric("", None, "always", "of relaxed categorical latents"),
    "concentration": Metric("", None, "images", "of von Mises-Fisher posteriors, their mean"),
    "generator_loss": Metric(NATS, None, "images", "how badly the samples pass for images, by an adversary"),
    "discriminator_loss": Metric(NATS, None, "images", "how badly an adversary tells images and samples apart"),
    "adversarial_weight": Metric("", None, "always", "weight of the generator's loss, where it adapts itself"),
    "total_correlation_adversary": Metric(
        NATS, "lower", "images", "KL(q(z), prod_j q(z_j)), by an adversary's log-odds"
    ),
    "score_real": Metric("", None, "images", "mean probability that an adversary gives to what is real to be so"),
    "score_generated": Metric("", None, "images", "mean probability that an adversary gives to the model's to be real"),
    "lr": Metric("", None, "always", "learning rate"),
    "images_per_second": Metric("images per second", "higher", "always", "training speed, without validation"),
    "train_seconds": Metric("seconds", "lower", "always", "training time, without validation and pictures"),
    "peak_memory_mb": Metric("MB", "lower", "always", "largest resident memory of the process"),
    "parameters": Metric("parameters", None, "always", "numbers that are trained"),
    "epochs": Metric("epochs", None, "always", "epochs begun"),
    "steps": Metric("steps", None, "always", "optimizer steps"),
}
HEADLINE = ("loss", "elbo", "kl", "mse")  # what one line of 80 columns shows of a split
FAMILIES = {  # what of a key stands for any -> the name in the catalogue
    r"bound_is\d+": "bound_isK",
    r"nll_is\d+": "nll_isS",
    r"kl_z\d+": "kl_z",
    r"(fid|kid|precision|recall|density|coverage|confident|class_entropy)_.+_n\d+": r"\1",
    r"accuracy_.+": "accuracy",
}
UNKNOWN = Metric("", None, "weights", "")  # a user's own: compared only where everything is the same


def key_of(metric: str) -> str:
    """A metric without its stage: `elbo` of `val/elbo`."""
    return metric.rpartition("/")[2]


def name_of(metric: str) -> str:
    """The name in the catalogue of a metric, with or without its stage.

    A number of samples is any, `nll_is500` is `nll_isS`; so are that of a latent, `kl_z3` is `kl_z`, and an extractor
    with a number of images, `fid_mnist-cnn_n10000` is `fid`.
    """
    key = key_of(metric)
    matches = ((re.fullmatch(pattern, key), name) for pattern, name in FAMILIES.items())
    return next((match.expand(name) for match, name in matches if match), key)


def find(metric: str) -> Metric:
    """What is known of a metric, with or without its stage; `UNKNOWN` of one that is not in the catalogue."""
    return CATALOGUE.get(name_of(metric), UNKNOWN)
