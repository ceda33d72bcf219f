"""What is wrong with a command line, in this program's words instead of Hydra's, and what was probably meant."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from pathlib import Path

import yaml
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

MISSING = object()
LIKE = 0.6  # below it, two names have little in common
OTHER_NAMES = {"beta": "KLD_weight", "gpus": "devices", "z_dim": "latent_dim"}  # in other programs
# Of Hydra. Whatever else begins with two dashes would be answered with a usage of eight lines.
FLAGS = (
    *("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion"),
    *("config-path", "config-name", "config-dir", "experimental-rerun", "info"),
)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names most like a mistyped one, at most three.

    Dotted names are compared by their last part, and one of the same group is preferred by a little.
    """
    group, _, last = name.lower().rpartition(".")
    scores = {}
    for other in known:
        other_group, _, other_last = other.lower().rpartition(".")
        if (score := likeness(last, other_last)) >= LIKE:
            scores[other] = score + 0.1 * (group == other_group)
    best = max(scores.values(), default=0)
    return [other for other, score in scores.items() if score == best][:3]


def likeness(name: str, other: str) -> float:
    """How much two names have in common, from 0 to 1; one that is a part of the other (size, image_size) has some."""
    part = LIKE if len(name) > 1 and name in other else 0
    return max(part, SequenceMatcher(None, name, other).ratio())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean this or that?`, or nothing where no known name is near."""
    found = nearest(name, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def setting_names(cfg: DictConfig, path: str = "") -> Iterator[str]:
    """The dotted name of every group and setting, without Hydra's and those that only hand on another (`${...}`)."""
    for key in cfg:
        name = f"{path}{key}"
        if OmegaConf.is_interpolation(cfg, key) or str(key).startswith("_") or name == "hydra":
            continue
        yield name
        if not OmegaConf.is_missing(cfg, key) and OmegaConf.is_dict(cfg[key]):
            yield from setting_names(cfg[key], f"{name}.")


def explain(error: Exception, arguments: Sequence[str] = (), conf: Path | None = None) -> str:
    """Say what an exception says, of Hydra's and OmegaConf's in words that need no knowledge of either.

    Args:
        error: any exception.
        arguments: of the command line.
        conf: the folder of the config groups.
    """
    if isinstance(error, InstantiationException) and isinstance(error.__cause__, ValueError):
        return str(error.__cause__)  # of a launcher or a sweeper; it names its key
    cause = error.__cause__ if isinstance(error, ConfigCompositionException) else error
    if isinstance(error, MissingConfigException):
        return explain_option(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override}: not of the form key=value (no spaces around =, quotes around [ ] {{ }} and spaces)"
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.full_key:
        return explain_key(cause, conf)
    if isinstance(error, ConfigCompositionException):
        return explain_composition(error)
    if isinstance(error, OmegaConfBaseException):
        return explain_value(error)
    if str(error).startswith("Config group override must be"):  # Hydra does not say of which group
        named = [a for a in arguments if a.partition("=")[0] in groups(conf) and not is_text(a.partition("=")[2])]
        return f"{' or '.join(named) or 'an override'}: the option of a group is a name, not null, a number or true"
    return str(error) or type(error).__name__


def explain_option(error: MissingConfigException) -> str:
    """A group has no such option."""
    if not error.options:
        return str(error).splitlines()[0]
    group, _, option = error.missing_cfg_file.rpartition("/")
    return (
        f"there is no {group}={option}{did_you_mean(option, error.options)} "
        f"(options of {group}: {', '.join(error.options)})"
    )


def explain_key(error: ConfigAttributeError | ConfigKeyError, conf: Path | None) -> str:
    """The config has no such key."""
    key, parent = str(error.full_key), error.parent_node
    root = OmegaConf.create() if parent is None else parent._get_root()
    dotted = key.replace("/", ".")
    known = [*groups(conf), *setting_names(root)]
    meant = did_you_mean(OTHER_NAMES.get(dotted.rpartition(".")[2], dotted), known)
    if options := options_with(dotted, conf):
        meant = f"; it belongs to {' or '.join(options)}"
    if "/" in key:
        meant = meant.replace(".", "/")
    group = key.rpartition(".")[0]
    target = OmegaConf.select(root, f"{group}._target_") if group and not key.startswith("hydra.") else None
    hint = f" (if {target} takes it: +{key}=VALUE)" if target else ""
    return f"there is no key {key}{meant}{hint}"


def options_with(key: str, conf: Path | None) -> list[str]:
    """The options, as `group=option`, that would bring a dotted key."""
    parts, found = key.split("."), []
    for depth in range(1, len(parts) if conf else 1):
        for path in sorted(conf.joinpath(*parts[:depth]).glob("*.yaml")):
            node = OmegaConf.to_container(OmegaConf.load(path))
            for part in parts[depth:]:
                node = node.get(part, MISSING) if isinstance(node, dict) else MISSING
            if node is not MISSING:
                found.append(f"{'/'.join(parts[:depth])}={path.stem}")
    return found


def explain_value(error: OmegaConfBaseException) -> str:
    """A value cannot be read or resolved."""
    text = " ".join(str(error).partition("\n    full_key:")[0].split())
    kind, _, reason = text.partition(" raised while resolving interpolation: ")
    if kind == "ValueError" and reason:
        return reason  # it names its key
    return f"{error.full_key}: {reason or text}" if error.full_key else text


def explain_composition(error: ConfigCompositionException) -> str:
    """An override that cannot be applied."""
    text = " ".join(str(error).split())
    if found := re.match(r"Ambiguous value for argument '(.*?)' 1\.", text):
        key, _, values = found[1].partition("=")
        return f"{found[1]}: a sweep over several values needs -m; one value that is a list is written {key}=[{values}]"
    if found := re.match(r"Could not append to config. An item is already at '(.*?)'", text):
        return f"{found[1]} exists already: change it with {found[1]}=VALUE, without the +"
    if found := re.match(r"Multiple values for (\S+)\. ", text):
        return f"{found[1]} has an option already: choose another with {found[1]}=OPTION, without the +"
    reason = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    return f"{text}{': ' if reason else ''}{reason}"


def groups(conf: Path | None) -> list[str]:
    """The config groups in a folder, without Hydra's."""
    return sorted(path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra") if conf else []


def is_text(value: str) -> bool:
    """Whether YAML reads a value as text."""
    return isinstance(yaml.safe_load(value), str)


def refuse_flags(arguments: Sequence[str]) -> None:
    """Refuse `--latent_dim=8`, and an empty setting of Hydra's, such as a folder that is then the present one.

    Raises:
        ValueError: naming the argument.
    """
    for argument in arguments:
        if argument.startswith("hydra.") and argument.endswith("="):
            raise ValueError(f"{argument} is empty; write {argument}VALUE")
        name, _, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and not any(flag.startswith(name) for flag in FLAGS):
            meant = f"{name.replace('-', '_')}={value or 'VALUE'}"
            raise ValueError(f"there is no option {argument}; settings are written without dashes: {meant}")
