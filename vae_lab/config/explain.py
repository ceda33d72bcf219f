"""What is wrong with a command line, in this program's words instead of Hydra's, and what was probably meant."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import yaml
from hydra.errors import (
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vae_lab.config.help import CONF
from vae_lab.config.nested import ABSENT, lookup, walk
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
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
# Of an override that cannot be applied: what Hydra says of it, and what is said instead.
OVERRIDES = {
    r"Ambiguous value for argument '((.*?)=(.*?))' 1\.": r"\1: a sweep over several values needs -m; "
    r"one value that is a list is written \2=[\3]; one that holds a comma, "
    "'\\2=\"\\3\"'",
    r"Could not append to config. An item is already at '(.*?)'": r"\1 exists already: change it with \1=VALUE, "
    r"without the +",
    r"Multiple values for (\S+)\. ": r"\1 has an option already: choose another with \1=OPTION, without the +",
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean this or that?`, at most three; nothing where no known name is near.

    Dotted names are compared by their last part; those of the same group come alone.
    """
    parts = {other: other.lower().rpartition(".") for other in known}
    group, _, last = name.lower().rpartition(".")
    best = get_close_matches(OTHER_NAMES.get(last, last), {other for _, _, other in parts.values()}, n=1)
    found = [other for other, (_, _, tail) in parts.items() if tail in best]
    found = [other for other in found if parts[other][0] == group] or found
    return f"; did you mean {' or '.join(found[:3])}?" if found else ""


def setting_names(raw: dict) -> Iterator[str]:
    """The dotted name of every group and setting, without Hydra's and those that only hand on another (`${...}`)."""
    for key, value in walk({name: node for name, node in raw.items() if name != "hydra"}):
        if re.fullmatch(r"(.*\.)?[a-zA-Z]\w*", key) and not (isinstance(value, str) and "${" in value):
            yield key


def explain(error: BaseException, arguments: Sequence[str] = ()) -> str:
    """What any exception says, that of Hydra and OmegaConf in words that need no knowledge of them.

    Args:
        error: any exception.
        arguments: of the command line.
    """
    cause = error.__cause__
    if isinstance(error, InstantiationException) and isinstance(cause, ValueError):
        return str(cause)  # of a launcher or a sweeper; it names its key
    if isinstance(error, MissingConfigException):
        if not error.options:
            return str(error).splitlines()[0]
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        meant = did_you_mean(option, error.options)
        return f"there is no {group}={option}{meant} (options of {group}: {', '.join(error.options)})"
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        if cause is not None:  # of a function, such as choice(a,b); Hydra gives none for a syntax error
            is_null = value.startswith("choice(") and "NoneType is incompatible" in str(cause)
            listed = f"a function takes no null; list the values instead, {key}=null,a,b"
            return f"{error.override}: {listed if is_null else one_line(cause)}"
        odd = dict.fromkeys(re.findall(r"[^\w\s/\\.+$%*@?|:-]|[^\x00-\x7f]", value))  # not in Hydra's bare values
        if odd and not re.match(r"[\[{'\"]|\w+\([^)]*$", value):  # no list, text or function that is cut
            mark = "'" if '"' in value else '"'
            quoted = shlex.quote(f"{key}={mark}{value}{mark}")
            return f"{error.override}: a value with {' '.join(odd)} needs quotes: {quoted}"
        return f"{error.override}: not of the form key=value (no spaces around =, quotes around [ ] {{ }} and spaces)"
    unknown = cause if isinstance(error, ConfigCompositionException) else error
    if isinstance(unknown, ConfigAttributeError | ConfigKeyError) and unknown.full_key:
        return explain_key(unknown)
    if isinstance(error, ConfigCompositionException):
        text = one_line(error)
        if (found := re.match(r"Ambiguous value for argument '((.*?)=.*?)'", text)) and is_group(found[2]):
            return f"{found[1]}: several options of a group are a sweep, which needs -m: vae-lab -m {found[1]}"
        if found := re.match(r"Could not delete from config\. '(.*?)' does not exist", text):
            is_known = options_with(found[1]) or lookup(read_yaml(CONF / "config.yaml"), found[1]) is not ABSENT
            return f"~{found[1]}: {'it is null already, leave that out' if is_known else 'there is no such key'}"
        for pattern, ours in OVERRIDES.items():
            if found := re.match(pattern, text):
                return found.expand(ours)
        return f"{text}: {str(cause).splitlines()[0]}" if str(cause or "") else text
    if isinstance(error, OmegaConfBaseException):  # a value that cannot be read or resolved
        text = " ".join(str(error).partition("\n    full_key:")[0].split())
        kind, _, reason = text.partition(" raised while resolving interpolation: ")
        if kind == "ValueError" and reason:
            return reason  # it names its key
        return f"{error.full_key}: {reason or text}" if error.full_key else text
    if isinstance(error, yaml.YAMLError):
        return f"a config file is not plain YAML: {error}"
    if str(error).startswith("BasicSweeper does not support sweep type"):  # Hydra does not say of which key
        drawn = next((text for text in arguments if re.match(r"[^-=]*=.*interval\s*\(", text)), "interval(a,b)")
        return f"{drawn} is drawn from in a search: add hydra/sweeper=optuna, or list the values that a grid has"
    if str(error).startswith("Config group override must be"):  # Hydra does not say of which group
        pairs = ((argument, *argument.partition("=")[::2]) for argument in arguments)
        named = [text for text, key, value in pairs if key in GROUPS and not isinstance(yaml.safe_load(value), str)]
        return f"{' or '.join(named) or 'an override'}: the option of a group is a name, not null, a number or true"
    return one_line(error)


def quote(text: str | Path) -> str:
    """Write text in Hydra's grammar of overrides, where backslashes mean something before a quote and at the end."""
    escaped = re.sub(r"(\\*)(?='|\Z)", r"\1\1", str(text)).replace("'", "\\'")
    return f"'{escaped}'"


def is_group(key: str) -> bool:
    """Whether a key chooses an option: of a group of ours, such as `optimizer/schedule`."""
    return key.split("/")[0] in GROUPS and (CONF / key).is_dir()


def read_yaml(path: Path) -> Any:
    """The content of one of our config files."""
    return OmegaConf.to_container(OmegaConf.load(path))


def explain_key(error: ConfigAttributeError | ConfigKeyError) -> str:
    """The config has no such key."""
    key, parent = str(error.full_key), error.parent_node
    root = OmegaConf.create() if parent is None else parent._get_root()
    dotted = key.replace("/", ".")
    meant = did_you_mean(dotted, [*GROUPS, *setting_names(cast(dict, OmegaConf.to_container(root)))])
    if options := options_with(dotted):
        meant = f"; it belongs to {' or '.join(options)}"
    if "/" in key:
        meant = meant.replace(".", "/")
    group = key.rpartition(".")[0]
    target = OmegaConf.select(root, f"{group}._target_") if group and not key.startswith("hydra.") else None
    hint = f" (if {target} takes it: +{key}=VALUE)" if target else ""
    if str(target).startswith("vae_lab."):  # whose files in conf/ name all that a class takes
        names = [name for name in OmegaConf.select(root, group) if not str(name).startswith("_")]
        hint = f"; {group} has {', '.join(names) or 'no settings'}"
    return f"there is no key {key}{meant}{hint}"


def options_with(key: str) -> list[str]:
    """The options, as `group=option`, that would bring a dotted key."""
    parts, found = key.split("."), []
    for depth in range(1, len(parts)):
        for path in sorted(CONF.joinpath(*parts[:depth]).glob("*.yaml")):
            if lookup(read_yaml(path), ".".join(parts[depth:])) is not ABSENT:
                found.append(f"{'/'.join(parts[:depth])}={path.stem}")
    return found


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
        if value.startswith("[") and is_group(key) and key != "experiment":
            options = value.strip("[]").replace(" ", "")
            raise ValueError(f"{key} must be one option, got {value}; to try several: vae-lab -m {key}={options}")
        if key == "hydra.output_subdir" and value != "null":
            raise ValueError(f"hydra.output_subdir must be null, got {value!r}: the run keeps its config itself")
        name, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or any(flag.startswith(name) for flag in FLAGS):
            continue
        if "experimental-rerun".startswith(name):
            raise ValueError("--experimental-rerun would run a pickle; continue a run with resume=RUN_DIR")
        meant = f"{name.replace('-', '_')}={value or 'VALUE'}"
        raise ValueError(f"there is no option {argument}; settings are written without dashes: {meant}")
