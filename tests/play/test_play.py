"""The playground: what is asked of a run is what the model gives, and every view shows it for every kind of model."""

import io
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streamlit.testing.v1 import AppTest

from vae_lab.config.instantiate import build_vae
from vae_lab.errors import DataError, NumericsError, RunError
from vae_lab.play import app, command
from vae_lab.play.subject import Subject, interpolate, open_subject
from vae_lab.training.build import build_data
from vae_lab.training.train import train

SETTINGS = {"checkpoint": "best", "data_root": None, "dataset.root": None}
KINDS = {
    "mlp": ["latent_dim=2"],
    "conv": ["model=conv", "model.channels=[4,4]", "model.hidden_dims=[8]", "latent_dim=5"],
    "conditional": ["model.conditional=true", "loss=mse"],
    "autoencoder": ["posterior=deterministic", "loss=mse"],
    "generator": ["posterior=none", "objective=gan", "latent_dim=9"],
    "book": ["model=conv", "model.channels=[4,4]", "model.hidden_dims=[8]", "model.spatial=true", "posterior=vq",
             "posterior.num_codes=8", "latent_dim=4"],
    "gumbel": ["posterior=gumbel", "posterior.num_categories=4", "latent_dim=8"],
    "finite": ["posterior=fsq", "posterior.levels=[3,3]", "latent_dim=4"],
    "layers": ["posterior=hierarchical", "prior=hierarchical", "loss=optimal_sigma"],
    "flow": ["posterior=iaf", "prior=flow"],
    "vamp": ["prior=vamp", "prior.components=5"],
    "sphere": ["posterior=vmf", "latent_dim=3"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_main_module(monkeypatch):
    """Keep this process's: Streamlit puts the page there, and whatever is spawned later would begin with it."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def make(config):
    """A subject of any kind, whose weights are random."""

    def subject(kind: str = "mlp", *overrides: str) -> Subject:
        cfg = config(*KINDS[kind], *overrides)
        torch.manual_seed(0)
        vae, data = build_vae(cfg).eval().requires_grad_(False), build_data(cfg)
        data.prepare_data()
        return Subject(kind, Path(cfg.run_dir), vae, cfg, data, "")

    return subject


def shown(subjects: list[Subject]) -> AppTest:
    """The page of some subjects, as it is at first."""
    app.SUBJECTS[:] = subjects
    return AppTest.from_string("from vae_lab.play.app import page\n\npage()", default_timeout=60).run()


def check(page: AppTest) -> None:
    assert not page.exception, page.exception[0].stack_trace
    assert not page.error


def test_a_run_is_opened_with_its_codes_and_draws_what_it_was_trained_for(config):
    cfg = config()
    train(cfg)
    subject = open_subject(Path(cfg.run_dir), SETTINGS)
    x, y = subject.x[:5], subject.y[:5]
    assert torch.equal(subject.encode(x, y)[0], subject.codes[:5])
    assert torch.equal(subject.decode(subject.codes[:5], y), subject.vae.reconstruct(x))
    assert subject.order == sorted(subject.order, key=lambda latent: -subject.weights[0][latent])
    assert subject.weights[1] == "nats"
    assert torch.equal(subject.draw("prior", 7, 1.0, 3), torch.randn(7, 3, generator=torch.Generator().manual_seed(3)))
    assert subject.draw("prior", 7, 0.0, 3).abs().max() == 0
    assert {"prior", "gaussian", "mixture", "flow"} < set(subject.samplers)
    fitted = subject.draw("gaussian", 500, 1.0, 0)
    mean = subject.codes.mean(0)
    torch.testing.assert_close(subject.draw("gaussian", 500, 0.5, 0), mean + 0.5 * (fitted - mean))


@pytest.mark.fault
def test_a_run_that_is_damaged_or_has_diverged_is_refused(config, monkeypatch):
    cfg = config("trainer.max_epochs=1")
    train(cfg)
    best = Path(cfg.run_dir, "checkpoints", "best.ckpt")
    content = best.read_bytes()
    best.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"best\.ckpt"):
        command.play([cfg.run_dir])
    best.write_bytes(content)
    monkeypatch.setattr(Subject, "encode", lambda self, x, y: (torch.full((len(x), 3), torch.nan), None, None))
    with pytest.raises(NumericsError, match="diverged"):
        open_subject(Path(cfg.run_dir), SETTINGS)


def test_a_tile_of_the_manifold_is_what_its_middle_decodes_to(make):
    subject, side = make(), 4
    low, high = subject.bounds
    tiles = torch.from_numpy(subject.manifold((0, 1), torch.zeros(2), subject.label(), side))
    middle = low + (high - low) * torch.tensor([3.5, 0.5]) / side  # the last column of the bottom row
    image = subject.decode(middle[None], subject.label())[0, 0]
    assert (tiles[-8:, -8:, 0] / 255 - image).abs().max() <= 0.5 / 255 + 1e-6  # a byte's rounding


def test_a_walk_begins_and_ends_at_its_ends_and_keeps_the_length_on_a_sphere():
    start, end = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 3.0, 0.0])
    for on_sphere in (False, True):
        path = interpolate(start, end, 5, on_sphere)
        torch.testing.assert_close(path[[0, -1]], torch.stack([start, end]))
    torch.testing.assert_close(path.norm(dim=1), torch.full((5,), 3.0))
    torch.testing.assert_close(interpolate(start, start, 5, True), start.expand(5, 3))  # no angle to go


def test_latents_of_a_generator_are_ordered_by_what_they_change(make):
    subject = make("generator")
    effects, unit = subject.weights
    assert unit == "effect"
    assert subject.order == effects.argsort(descending=True).tolist()
    assert subject.order[0] == effects.argmax()


def picture(kind: str, size: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(size * size, dtype=np.uint8).reshape(size, size)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.fault
def test_an_uploaded_picture_is_read_as_those_of_a_folder_are(make):
    subject = make()
    assert torch.equal(subject.upload("own.png", picture("PNG"))[0, 0].flatten() * 255, torch.arange(64.0))
    assert set(make("mlp", "dataset.binarize=dynamic").upload("own.png", picture("PNG")).unique().tolist()) <= {
        0.0,
        1.0,
    }


@pytest.mark.fault
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"not a picture", "no picture"), (picture("PNG")[:-30], "broken|truncated|damaged"),
     (picture("JPEG")[:-9], "the end of the picture is missing"), (b"0" * 10_000_001, "more than 10 MB")],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_a_line_that_names_it(make, content, reason):
    with pytest.raises(DataError, match=f"^own\\.png: .*({reason})") as caught:
        make().upload("own.png", content)
    assert len(str(caught.value).splitlines()) == 1
    assert "/" not in str(caught.value)  # no place of this machine


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_view_of_every_kind_of_model_is_drawn(kind, make):
    page = shown([make(kind)])
    views = page.segmented_control(key="view").options
    assert ("Codes" in views) is (kind in ("book", "finite"))
    assert ("Reconstruct" in views) is (kind != "generator")
    assert ("Samples" in views) is True
    for view in views:
        page.segmented_control(key="view").set_value(view).run()
        check(page)
        assert page.image or view == "Map"


def source(page: AppTest) -> str:
    """The first picture of the page, as its data URL."""
    return page.image[0].value[0]


def test_the_picture_follows_the_latents_and_the_label(make):
    page = shown([make("conditional")])
    check(page)
    before = source(page)
    page.session_state["conditional z"] = torch.tensor([2.0, -1.0, 0.5])
    page.run()
    check(page)
    moved = source(page)
    page.selectbox(key="latents label 0").set_value(7).run()
    check(page)
    assert len({before, moved, source(page)}) == 3


def test_an_edited_code_changes_the_picture_and_nothing_but_it(make):
    subject = make("book")
    codes = subject.indices[:1].clone()
    before = subject.decode(subject.vae.posterior.lookup(codes).flatten(1), subject.label())
    torch.testing.assert_close(before, subject.decode(subject.codes[:1], subject.label()))
    codes[0, 0, 0, 0] = (codes[0, 0, 0, 0] + 1) % 8
    after = subject.decode(subject.vae.posterior.lookup(codes).flatten(1), subject.label())
    assert not torch.equal(before, after)


@pytest.mark.slow
def test_runs_are_shown_side_by_side_on_the_same_latents(make):
    first, second, other = make(), make("mlp", "model.hidden_dims=[8]"), make("conv")
    second.name = "smaller"
    page = shown([first, second, other])
    check(page)
    assert [image.captions[0] for image in page.image] == ["mlp", "smaller"]
    assert any("conv has other latents" in caption.value for caption in page.caption)


@pytest.mark.fault
def test_words_of_others_stay_words(make):
    link, names = "![x](http://x.y/z.png)", []
    for _ in range(2):
        subject = make("conditional")
        subject.name = f"{link}{len(names)}"
        subject.data.class_names, subject.data.factors = (link,) * 10, (link,)
        names.append(subject)
    page = shown(names)
    for view in page.segmented_control(key="view").options:
        page.segmented_control(key="view").set_value(view).run()
        check(page)
        texts = [caption.value for caption in page.caption] + [box.label for box in page.selectbox]
        texts += [option for pills in page.pills for option in pills.options]
        texts += [caption for image in page.image for caption in image.captions]
        assert not [text for text in texts if "](" in text]


@pytest.mark.fault
def test_a_run_whose_images_are_missing_is_shown_without_them(config, make):
    cfg = config("latent_dim=2")
    subject = Subject(
        "mlp", Path(cfg.run_dir), build_vae(cfg).eval().requires_grad_(False), cfg, None, "![gone](http://x.y)"
    )
    page = shown([subject])
    check(page)
    assert r"\!\[gone\]\(http\:\/\/x\.y\)" in page.warning[0].value  # words, not a picture from elsewhere
    assert page.segmented_control(key="view").options == ["Latents", "Samples", "Reconstruct"]


@pytest.mark.fault
def test_the_server_is_of_this_machine_alone_and_tells_nobody(config, monkeypatch, capsys):
    streamlit = pytest.importorskip("streamlit")
    started = []
    monkeypatch.setattr("streamlit.web.bootstrap.run", lambda script, *rest: started.append(script))
    monkeypatch.setattr(app, "open_all", lambda folders, settings: None)
    monkeypatch.setattr(command.gc, "freeze", lambda: None)
    monkeypatch.setattr("streamlit.net_util.get_external_ip", None)  # so that it is as before afterwards
    command.play(["run"])
    assert Path(started[0]).is_file()
    expected = {"server.address": "127.0.0.1", "browser.gatherUsageStats": False, "server.fileWatcherType": "none",
                "server.maxUploadSize": 10, "server.enableXsrfProtection": True, "server.enableCORS": True}  # fmt: skip
    assert {key: streamlit.get_option(key) for key in expected} == expected
    assert streamlit.net_util.get_external_ip() is None
    assert "http://127.0.0.1:8501" in capsys.readouterr().out


@pytest.mark.fault
def test_what_cannot_be_served_is_one_line(monkeypatch):
    with pytest.raises(RunError, match="not a run folder"):
        command.play(["/nowhere"])
    monkeypatch.setattr(app, "open_all", lambda folders, settings: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"port={port} cannot be used"):
            command.play(["run", f"port={port}"])
    with pytest.raises(ValueError, match="address must be one of 127.0.0.1, 0.0.0.0"):
        command.play(["run", "address=192.168.0.2"])
    with pytest.raises(ValueError, match="no run folder given"):
        command.play([])
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"pip install 'vae_lab\[play\]'"):
        command.play(["run"])
