"""What is wrong with a command line, in this program's words instead of Hydra's, and what was probably meant."""

import re
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import cast

import yaml
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vae_lab.config.nested import ABSENT, lookup, walk
from vae_lab.config.secrets import redact
from vae_lab.errors import one_line

# In other programs.
OTHER_NAMES = {
    "beta": "kld_weight",
    "epochs": "max_epochs",
    "steps": "max_steps",
    "gpus": "devices",
    "size": "image_size",
}
# Of Hydra. Whatever else begins with two dashes would be answered with a usage of eight lines.
FLAGS = (
    *("help", "hydra-help", "version", "cfg", "resolve", "package", "run", "multirun", "shell-completion"),
    *("config-path", "config-name", "config-dir", "info"),
)


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names most like a mistyped one, at most three.

    Dotted names are compared by their last part; those of the same group come alone.
    """
    parts = {other: other.lower().rpartition(".") for other in known}
    group, _, last = name.lower().rpartition(".")
    best = get_close_matches(OTHER_NAMES.get(last, last), {other for _, _, other in parts.values()}, n=1)
    found = [other for other, (_, _, tail) in parts.items() if tail in best]
    return ([other for other in found if parts[other][0] == group] or found)[:3]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean this or that?`, or nothing where no known name is near."""
    found = nearest(name, known)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def setting_names(raw: dict) -> Iterator[str]:
    """The dotted name of every group and setting, without Hydra's and those that only hand on another (`${...}`)."""
    for key, value in walk({name: node for name, node in raw.items() if name != "hydra"}):
        if re.fullmatch(r"(.*\.)?[a-zA-Z]\w*", key) and not (isinstance(value, str) and "${" in value):
            yield key


def explain(error: BaseException, arguments: Sequence[str] = (), conf: Path | None = None) -> str:
    """Any exception on one line, without secrets; what Hydra and OmegaConf say in words that need no knowledge of them.

    Args:
        error: any exception.
        arguments: of the command line.
        conf: the folder of the config groups.
    """
    return redact(" ".join(in_our_words(error, arguments, conf).split()))


def in_our_words(error: BaseException, arguments: Sequence[str], conf: Path | None) -> str:
    """As `explain`, on any number of lines."""
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
    if isinstance(error, yaml.YAMLError):
        return f"a config file is not plain YAML: {error}"
    if str(error).startswith("Config group override must be"):  # Hydra does not say of which group
        named = [a for a in arguments if a.partition("=")[0] in groups(conf) and not is_text(a.partition("=")[2])]
        return f"{' or '.join(named) or 'an override'}: the option of a group is a name, not null, a number or true"
    return one_line(error)


def explain_option(error: MissingConfigException) -> str:
    """A group has no such option."""
    if not error.options:
        return str(error).splitlines()[0]
    group, _, option = str(error.missing_cfg_file).rpartition("/")
    return (
        f"there is no {group}={option}{did_you_mean(option, error.options)} "
        f"(options of {group}: {', '.join(error.options)})"
    )


def explain_key(error: ConfigAttributeError | ConfigKeyError, conf: Path | None) -> str:
    """The config has no such key."""
    key, parent = str(error.full_key), error.parent_node
    root = OmegaConf.create() if parent is None else parent._get_root()
    dotted = key.replace("/", ".")
    meant = did_you_mean(dotted, [*groups(conf), *setting_names(cast(dict, OmegaConf.to_container(root)))])
    if conf and (options := options_with(dotted, conf)):
        meant = f"; it belongs to {' or '.join(options)}"
    if "/" in key:
        meant = meant.replace(".", "/")
    group = key.rpartition(".")[0]
    target = OmegaConf.select(root, f"{group}._target_") if group and not key.startswith("hydra.") else None
    hint = f" (if {target} takes it: +{key}=VALUE)" if target else ""
    return f"there is no key {key}{meant}{hint}"


def options_with(key: str, conf: Path) -> list[str]:
    """The options, as `group=option`, that would bring a dotted key."""
    parts, found = key.split("."), []
    for depth in range(1, len(parts)):
        for path in sorted(conf.joinpath(*parts[:depth]).glob("*.yaml")):
            if lookup(OmegaConf.to_container(OmegaConf.load(path)), ".".join(parts[depth:])) is not ABSENT:
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
    text = one_line(error)
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
    """Refuse what Hydra would take for something else, or do although it harms.

    `--latent_dim=8`; an empty setting of Hydra's, such as a folder that is then the present one; a pickle; a copy of
    the config, which Hydra would write over that of a run that is there already.

    Raises:
        ValueError: naming the argument.
    """
    for argument in arguments:
        if argument.startswith("hydra.") and argument.endswith("="):
            raise ValueError(f"{argument} is empty; write {argument}VALUE")
        key, _, value = argument.lstrip("+~").partition("=")
        if key == "hydra.output_subdir" and value != "null":
            raise ValueError(f"hydra.output_subdir must be null, got {value!r}: the run keeps its config itself")
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or any(flag.startswith(name) for flag in FLAGS):
            continue
        if "experimental-rerun".startswith(name):
            raise ValueError("--experimental-rerun would run a pickle; continue a run with resume=RUN_DIR")
        meant = f"{name.replace('-', '_')}={value or 'VALUE'}"
        raise ValueError(f"there is no option {argument}; settings are written without dashes: {meant}")
