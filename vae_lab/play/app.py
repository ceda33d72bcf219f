"""The page of the playground: Streamlit draws all of it at a visit, and one view, a fragment, at every move.

A view gets the subjects that are shown side by side.
"""

import base64
import io
import math
import re
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
import torch
from plotly.colors import sample_colorscale
from torch import Tensor

from vae_lab.data.image_folder import ENDINGS
from vae_lab.errors import DataError, RunError, one_line
from vae_lab.evaluation import pictures
from vae_lab.evaluation.pictures import MUTED, principal_components
from vae_lab.play.subject import MAX_BYTES, Subject, encoded, interpolate, open_subject, tiled

SUBJECTS: list[Subject] = []  # what the command has opened, for all visits
MAX_SLIDERS = 12  # that are shown at first
MAX_POINTS = 1000  # of the map
MAX_THUMBNAIL = 32  # pixels, on the map
LARGE, SIDE = 280, 16  # pixels of a picture that stands alone; most tiles in a row of a manifold
CSS = """
:host { display: block } .plane { position: relative; max-width: 460px; font: 13px var(--st-font, sans-serif) }
canvas { width: 100%; aspect-ratio: 1; display: block; touch-action: none; cursor: crosshair; border-radius: 8px;
  color: var(--st-text-color); background: var(--st-secondary-background-color); outline-offset: 2px }
.tip { position: absolute; display: none; pointer-events: none; padding: 4px; border-radius: 6px; text-align: center;
  color: var(--st-text-color); background: var(--st-background-color); box-shadow: 0 1px 6px #0006 }
.tip canvas { width: 84px; height: 84px; aspect-ratio: auto; image-rendering: pixelated }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; padding-top: 6px; color: var(--st-text-color) }
.sliders { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 8px 24px; margin-top: 10px }
.sliders label { display: grid; grid-template-columns: 1fr auto; color: var(--st-text-color) }
.sliders input { grid-column: 1 / 3; width: 100%; margin: 4px 0; accent-color: var(--st-primary-color) }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 4px }
"""
HTML = (
    '<div class="plane"><canvas class="main" tabindex="0"></canvas>'
    '<div class="tip"><canvas></canvas><div></div></div><div class="legend"></div><div class="sliders"></div></div>'
)


def open_all(folders: list[Path], settings: dict[str, Any]) -> None:
    """Open the runs that the page shows; the first that is refused is raised."""
    SUBJECTS.clear()
    for folder in folders:
        SUBJECTS.append(open_subject(folder, settings, SUBJECTS))
    names = [subject.name for subject in SUBJECTS]
    for subject in SUBJECTS:  # names are keys on the page
        if names.count(subject.name) > 1:
            subject.name = str(subject.folder)


def page() -> None:
    """Draw the whole page."""
    st.set_page_config(page_title="vae_lab play", layout="wide")
    shown = names = [subject.name for subject in SUBJECTS]
    if len(names) == 1:
        st.caption(plain(names[0]))
    else:
        shown = st.pills("Runs", names, selection_mode="multi", default=names, key="runs", format_func=plain,
                         bind="query-params") or names[:1]  # fmt: skip
    subjects = [subject for subject in SUBJECTS if subject.name in shown]
    for subject in subjects:
        if subject.trouble:
            st.warning(plain(f"The images of {subject.name} cannot be read: {subject.trouble}"))
    views = {name: [s for s in subjects if can(s)] for name, (_, can) in VIEWS.items()}
    names = [name for name, able in views.items() if able]
    chosen = st.segmented_control(
        "View", names, default=names[0], key="view", label_visibility="collapsed", required=True, bind="query-params"
    )
    VIEWS[chosen][0](views[chosen])


def view(draw: Callable[[list[Subject]], None]) -> Callable[[list[Subject]], None]:
    """A fragment on which a failure that a user can mend is one line."""

    @st.fragment
    @wraps(draw)
    def guarded(subjects: list[Subject]) -> None:
        try:
            draw(subjects)
        except (DataError, RunError, OSError) as error:
            st.error(plain(one_line(error)))

    return guarded


@view
def latents(subjects: list[Subject]) -> None:
    """Sliders and a pad for the latents of the first subject; all that have latents of that shape are decoded."""
    first, *others = subjects
    same = [first] + [s for s in others if s.vae.latent_shape == first.vae.latent_shape]
    key = f"{first.name} z"
    st.session_state.setdefault(key, first.centre.clone())

    def put(z: Tensor) -> None:
        st.session_state[key] = z.clone()

    def draw() -> None:
        st.session_state["draws"] = seed = st.session_state.get("draws", -1) + 1
        put(first.draw("prior", 1, 1.0, seed)[0])

    shown, controls = st.columns(2, gap="large")  # on a phone the picture is above what moves it
    with controls:
        labels = choose_labels(same, "latents")
        with st.container(horizontal=True):
            st.button("Centre", on_click=lambda: put(first.centre))
            if "prior" in first.samplers:
                st.button("Random draw", on_click=draw)
            if len(first.codes):
                number = int(torch.randint(len(first.codes), ()))
                st.button("An image's code", on_click=lambda: put(first.codes[number]))
        num = min(MAX_SLIDERS, len(first.order))
        if len(first.order) > num:
            num = st.number_input(f"Sliders, of {len(first.order)} latents", 1, len(first.order), num)
        z = st.session_state[key]
        move_latents(first, key, first.order[:num], labels[first.name])
    with shown:
        drawn = []
        for column, subject in side_by_side(same):
            with column:
                drawn.append(picture(subject.decode(z[None], labels[subject.name]), LARGE, subject.name))
        for subject in subjects:
            if subject not in same:
                shape = " x ".join(map(str, subject.vae.latent_shape))
                st.caption(
                    plain(f"{subject.name} has other latents ({shape}); to move these, leave the runs before it out.")
                )
        downloads("latents", drawn, {"latents": z[None]})


def move_latents(subject: Subject, key: str, dims: list[int], labels: Tensor) -> None:
    """Sliders of latents, and a plane of two to drag a point on: on the manifold, or on where the codes are."""
    right, up = dims[0], dims[-1]
    if len(dims) > 2:
        with st.container(horizontal=True):
            right = st.selectbox("To the right", dims, 0, format_func=lambda dim: f"z{dim}", key=f"{key} right")
            up = st.selectbox("Upwards", dims, 1, format_func=lambda dim: f"z{dim}", key=f"{key} up")
    low, high = (bound.tolist() for bound in subject.bounds)
    (weights, unit), z = subject.weights, st.session_state[key]
    move = (st.session_state.get(f"{key} plane") or {}).get("move") or {}
    data: dict[str, Any] = {
        "range": [[low[dim], high[dim]] for dim in (right, up)],
        "names": [f"z{right}", f"z{up}"],
        "dims": [right, up],
        "at": {str(dim): float(z[dim]) for dim in dims},
        "answer": move.get("number"),
        "hidden": right == up,
        "sliders": [
            {"dim": dim, "label": f"z{dim} · {weights[dim]:.3g} {unit}", "low": low[dim], "high": high[dim]}
            for dim in dims
        ],
    }
    if subject.num_latents == 2:
        data["background"] = manifold(subject, (right, up), tuple(labels[0].tolist()))
    else:
        data["points"] = subject.codes[:300][:, [right, up]].T.tolist()

    def follow() -> None:
        moved = st.session_state[f"{key} plane"]["move"]["latents"]
        for dim, value in moved.items():
            st.session_state[key][int(dim)] = min(max(float(value), low[int(dim)]), high[int(dim)])

    plane(f"{key} plane", data, on_move_change=follow)


@lru_cache(maxsize=100)
def manifold(subject: Subject, dims: tuple[int, int], labels: tuple[int, ...]) -> str:
    """What two latents stand for, as a data URL."""
    side = max(4, min(SIDE, 512 // subject.vae.image_shape[-1]))
    return data_url(subject.manifold(dims, subject.centre, torch.tensor([labels]).long(), side), "JPEG")


@view
def samples(subjects: list[Subject]) -> None:
    """Draws from the prior, or from what is fitted to the codes."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        names = list(dict.fromkeys(name for subject in subjects for name in subject.samplers))
        name = st.selectbox("Sampler", names, width=180, help="What is fitted takes a minute once, and is then kept.")
        num = st.number_input("Images", 1, 400, 36, width=120)
        temperature = st.slider("Temperature", 0.0, 2.0, 1.0, 0.05, width=220)
        seed = st.number_input("Seed", 0, 2**31, 0, width=120)
    labels = choose_labels(subjects, "samples", all_in_turn=True)
    drawn, codes = [], {}
    for column, subject in side_by_side(subjects):
        with column:
            if name not in subject.samplers:
                st.caption(plain(f"{subject.name} has no {name}"))
                continue
            with st.spinner(f"fitting {name}"):
                z = subject.draw(name, num, temperature, seed)
            y = labels[subject.name]
            y = y[torch.arange(num) % len(y)]
            codes[subject.name] = z
            drawn.append(picture(subject.decode(z, y), 48, subject.name))
            if temperature != 1 and not subject.has_temperature(name):
                st.caption("The codes of this prior are all equally likely: there is no temperature.")
    downloads("samples", drawn, codes)


@view
def reconstruct(subjects: list[Subject]) -> None:
    """Images and what the model makes of their codes."""
    source = choose_source(subjects, "reconstruct")
    labels = choose_labels(subjects, "reconstruct") if source[0] == "upload" else None
    drawn, codes = [], {}
    for column, subject in side_by_side(subjects):
        with column:
            x, y = take(subject, source, 8, None if labels is None else labels[subject.name])
            z = subject.encode(x, y)[0]
            x_hat = subject.decode(z, y)
            codes[subject.name] = z
            error = (x - x_hat).square().mean()
            least = LARGE if len(x) == 1 else 48
            drawn.append(picture(torch.cat([x, x_hat]), least, subject.name, max(len(x), 2)))
            where = "The image and its reconstruction" if len(x) == 1 else "Images above, reconstructions below"
            st.caption(f"{where}: mse {error:.4f} per pixel")
    downloads("reconstructions", drawn, codes)


@view
def between(subjects: list[Subject]) -> None:
    """A way from one image, or draw, to another; of a conditional model, each half with the label of its end."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        steps = st.slider("Steps", 3, 24, 10, width=220)
        way = st.segmented_control("Way", ["linear", "spherical"], default="linear", required=True)
    ends = []
    for side, column in zip(("From", "To"), st.columns(2), strict=True):
        with column:
            ends.append(choose_source(subjects, side, side, int(side == "To")))
    drawn, codes = [], {}
    for subject in subjects:
        z, pair, y = [], list[Tensor](), [subject.label()] * 2
        for number, source in enumerate(ends):
            if subject.has_encoder:
                x, y[number] = take(subject, source, 1, subject.label())
                pair.append(x)
                z.append(subject.encode(x, y[number])[0][0])
            else:
                z.append(subject.draw("prior", 1, 1.0, source[1])[0])
        path = interpolate(z[0], z[1], steps, way == "spherical")
        images = torch.cat([subject.decode(*half) for half in zip(path.chunk(2), y, strict=True)])
        shown = torch.cat([pair[0], images, pair[1]]) if pair else images
        drawn.append(picture(shown, 48, subject.name, len(shown)))
        codes[subject.name] = path
    downloads("interpolation", drawn, codes)


@view
def map_of_codes(subjects: list[Subject]) -> None:
    """The codes of images in the plane: look at one, or enclose a group to see what its mean stands for."""
    for column, subject in side_by_side(subjects):
        with column:
            st.caption(plain(f"{subject.name}: drag around a group to see its mean, or click one image"))
            key = f"{subject.name} map"
            plane(key, atlas(subject), on_chosen_change=lambda: None)
            chosen = [i for i in (st.session_state.get(key) or {}).get("chosen") or [] if i < len(subject.codes)]
            if chosen:
                z, y = subject.codes[chosen].mean(0, keepdim=True), subject.y[chosen[:1]]
                image = subject.decode(z, y)
                drawn = picture(image if len(chosen) > 1 else torch.cat([subject.x[chosen], image]), 140, subject.name)
                st.caption(f"the mean of {len(chosen)} codes" if len(chosen) > 1 else "the image, and its code decoded")
                downloads(key, [drawn], {"mean": z, "codes": subject.codes[chosen]})


@lru_cache(maxsize=20)
def atlas(subject: Subject) -> dict[str, Any]:
    """What the map of a subject shows: points, colours, and a sheet of small images."""
    codes, x = subject.codes[:MAX_POINTS], subject.x[:MAX_POINTS]
    names = ["z0", f"z{subject.num_latents - 1}"]
    if subject.num_latents > 2:
        codes, share = principal_components(codes)
        names = [f"principal component {i} ({part:.0%})" for i, part in enumerate(share.tolist(), 1)]
    points = codes[:, [0, -1]]
    low, high = points.amin(0), points.amax(0)
    margin = 0.05 * (high - low).clamp(min=1e-6)
    values = subject.y[:MAX_POINTS, 0].tolist() if subject.y.shape[1] else [0] * len(points)
    kinds = sorted(set(values))
    shades = MUTED if len(kinds) <= len(MUTED) else sample_colorscale("Viridis", len(kinds))
    colours = dict(zip(kinds, shades, strict=False))
    if max(x.shape[-2:]) > MAX_THUMBNAIL:
        x = torch.nn.functional.interpolate(x, (MAX_THUMBNAIL, MAX_THUMBNAIL), mode="area")
    texts = [label_name(subject, value) for value in values] if subject.y.shape[1] else [""] * len(values)
    return {
        "range": torch.stack([low - margin, high + margin], 1).tolist(),
        "names": names,
        "points": points.T.tolist(),
        "colours": [colours[value] for value in values],
        "legend": [[label_name(subject, k), c] for k, c in colours.items()] if 1 < len(kinds) <= len(MUTED) else [],
        "texts": texts,
        "sheet": data_url(tiled(x, 32), "JPEG"),
        "tile": [x.shape[3], x.shape[2], min(32, len(x))],
        "lasso": True,
    }


@view
def arithmetic(subjects: list[Subject]) -> None:
    """An image's code, less the mean code of one label, plus that of another."""
    first = subjects[0]
    source = choose_source(subjects, "arithmetic")
    present = sorted(set(first.y[:, 0].tolist()))
    with st.container(horizontal=True):
        less, plus = (
            st.selectbox(text, present, place, format_func=partial(label_name, first), width=180)
            for text, place in (("less the mean of", 0), ("plus the mean of", len(present) - 1))
        )
        most = st.slider("Strength", 0.0, 2.0, 1.0, 0.05, width=220)
    drawn, codes = [], {}
    for subject in subjects:
        x, y = take(subject, source, 1, subject.label())
        direction = (subject.mean_of(plus) - subject.mean_of(less)).nan_to_num()  # a label may be missing elsewhere
        z = subject.encode(x, y)[0] + torch.linspace(0, most, 6)[:, None] * direction
        codes[subject.name] = z
        drawn.append(picture(torch.cat([x, subject.decode(z, y)]), 84, subject.name, 7))
    st.caption(f"the image, its code decoded, and on the way to {most:g} times the difference")
    downloads("arithmetic", drawn, codes)


@view
def codes_of_book(subjects: list[Subject]) -> None:
    """The indices of an image in a book of codes, which can be edited."""
    source = choose_source(subjects, "codes")
    drawn, found = [], {}
    for column, subject in side_by_side(subjects):
        with column:
            x, y = take(subject, source, 1, subject.label())
            own = subject.encode(x, y)[2]
            assert own is not None
            most, indices, layer = subject.vae.posterior.num_codes - 1, own.clone(), 0
            flat = own[0] if own.ndim == 4 else own[0][None, None]  # (n, h, w)
            if len(flat) > 1:
                layer = st.number_input("Code at each place", 0, len(flat) - 1, 0, key=f"{subject.name} layer")
            table = {str(column): flat[layer, :, column].tolist() for column in range(flat.shape[2])}
            whole = st.column_config.NumberColumn(min_value=0, max_value=most, step=1, required=True)
            key = f"{subject.name} codes {source} {layer}"
            edited = st.data_editor(table, hide_index=True, key=key, column_config=dict.fromkeys(table, whole))
            values = torch.tensor([list(column) for column in edited.values()]).T.clamp(0, most)
            indices[0].view(flat.shape)[layer] = values
            z = [subject.vae.posterior.lookup(i).flatten(1) for i in (own, indices)]
            found[subject.name] = indices
            drawn.append(picture(torch.cat([x, subject.decode(torch.cat(z), y)]), 140, subject.name, 3))
            st.caption(f"the image, from its codes, from the codes above (each from 0 to {most})")
    downloads("codes", drawn, found)


def choose_source(subjects: list[Subject], key: str, label: str = "Image", default: int = 0) -> tuple:
    """("image", number) of the validation images, or ("upload", name, content)."""
    present, can_upload = [len(s.x) for s in subjects if len(s.x)], all(s.has_encoder for s in subjects)
    kinds = ["Validation image"] * bool(present or not can_upload) + ["Own picture"] * can_upload
    with st.container(horizontal=True, vertical_alignment="bottom"):
        kind: str | None = kinds[0]
        if len(kinds) > 1:
            kind = st.segmented_control(label, kinds, default=kind, required=True, key=f"{key} source")
            label = "Number"
        if kind == "Validation image":
            largest = min(present, default=2**31 + 1) - 1
            return "image", st.number_input(label, 0, largest, min(default, largest), key=f"{key} number", width=140)
    types = [ending.removeprefix(".") for ending in ENDINGS]
    file = st.file_uploader("A picture", types, key=f"{key} file", max_upload_size=MAX_BYTES // 10**6)
    invert = st.checkbox("Invert (dark on light becomes light on dark)", key=f"{key} invert")
    if file is None:
        st.stop()
    return "upload", file.name, file.getvalue(), invert


def take(subject: Subject, source: tuple, num: int, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) from a source, up to `num` of the data set from its number on, and labels (B, F)."""
    if source[0] == "image":
        start = source[1]
        return subject.x[start : start + num], subject.y[start : start + num]
    x = subject.upload(source[1], source[2])
    return (1 - x if source[3] else x), subject.label() if labels is None else labels


def choose_labels(subjects: list[Subject], key: str, all_in_turn: bool = False) -> dict[str, Tensor]:
    """Labels of each subject by its name, (1, F), or all of the first column in turn, (K, F)."""
    chosen = {subject.name: subject.label() for subject in subjects}
    taking = [subject for subject in subjects if subject.vae.num_classes]
    if not taking:
        return chosen
    row: list[int] = []
    with st.container(horizontal=True):
        for column, num in enumerate(taking[0].vae.num_classes):
            name = taking[0].data.factors[column] if taking[0].data is not None else f"label {column}"
            options = [-1] * (all_in_turn and not column) + list(range(num))
            text, own_key = partial(label_name, taking[0], column=column), f"{key} label {column}"
            row.append(st.selectbox(plain(name.capitalize()), options, format_func=text, key=own_key, width=180))
    for subject in taking:
        if len(subject.vae.num_classes) == len(row):
            most = torch.tensor(subject.vae.num_classes) - 1
            labels = torch.tensor([row]) if row[0] >= 0 else torch.tensor([[k, *row[1:]] for k in range(most[0] + 1)])
            chosen[subject.name] = torch.minimum(labels, most)
    return chosen


def plain(text: str) -> str:
    """Text that Streamlit shows as it is: what a stranger's run says must not become a link or a picture elsewhere.

    The marks that names of folders are full of stay as they are, since a name is a part of the page's address.
    """
    return re.sub(r"([!-+./:-<>-@\[-^`{-~])", r"\\\1", text)


def label_name(subject: Subject, label: int, column: int = 0) -> str:
    """What a label is called; only those of the first column have names."""
    names = subject.data.class_names if subject.data is not None and not column else ()
    return "all in turn" if label < 0 else names[label] if label < len(names) else str(label)


def side_by_side(subjects: list[Subject]) -> Any:
    """A column for each subject."""
    return zip(st.columns(len(subjects)), subjects, strict=True)


def picture(images: Tensor, least: int, name: str, num_columns: int | None = None) -> np.ndarray:
    """Show images (B, C, H, W) as tiles of at least so many pixels, named where there are several subjects.

    The picture travels within the page: a file of its own would be gone before it is fetched, in the middle of a drag.
    """
    drawn = pictures.grid(images, num_columns or math.ceil(math.sqrt(len(images))), least)
    st.image(data_url(drawn), caption=plain(name) if len(SUBJECTS) > 1 else None)
    return drawn


def downloads(name: str, drawn: list[np.ndarray], codes: dict[str, Tensor]) -> None:
    """What is seen as a PNG, and its codes as an .npz; made when they are asked for."""
    if not drawn:
        return

    def arrays() -> bytes:
        buffer, found = io.BytesIO(), {key: value.numpy() for key, value in codes.items()}
        np.savez(buffer, allow_pickle=False, **found)
        return buffer.getvalue()

    height, width = drawn[0].shape[:2]
    together = pictures.stack if width > 2 * height else pictures.beside
    with st.container(horizontal=True):
        image = lambda: encoded(together(drawn))  # noqa: E731
        st.download_button("PNG", image, f"{name}.png", "image/png", key=f"{name} png", on_click="ignore")
        st.download_button("Codes (.npz)", arrays, f"{name}.npz", key=f"{name} npz", on_click="ignore")


def data_url(drawn: np.ndarray, kind: str = "PNG") -> str:
    """A picture (H, W, 3) as a data URL."""
    return f"data:image/{kind.lower()};base64,{base64.b64encode(encoded(drawn, kind)).decode()}"


def plane(key: str, data: dict[str, Any], **on_change: Any) -> None:
    """A square to drag a point on (`point`), or to look at points and enclose some of them (`chosen`)."""
    js = (Path(__file__).parent / "plane.js").read_text()
    mount = st.components.v2.component("vae_lab_plane", html=HTML, css=CSS, js=js)
    mount(key=key, data=data, **on_change)


# The views by their names: what draws them, and of which subjects.
VIEWS: dict[str, tuple[Callable, Callable[[Subject], bool]]] = {
    "Latents": (latents, lambda s: not s.has_book),
    "Samples": (samples, lambda s: bool(s.samplers)),
    "Reconstruct": (reconstruct, lambda s: s.has_encoder),
    "Interpolate": (between, lambda s: len(s.x) > 1 or not s.has_encoder),
    "Map": (map_of_codes, lambda s: len(s.codes) > 1),
    "Arithmetic": (arithmetic, lambda s: len(s.codes) > 1 and s.y.shape[1] > 0),
    "Codes": (codes_of_book, lambda s: s.has_book),
}
