"""The command line of a sweep: a name that the same command finds again, and `resume_sweep=DIR`."""

import hashlib
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException

from vae_lab.config.roles import is_identity
from vae_lab.errors import RunError
from vae_lab.runs.resume import quote
from vae_lab.sweep.journal import JOURNAL, read_journal


def sweep_arguments(arguments: list[str], conf: Path) -> list[str]:
    """Complete the command line of a sweep; other command lines are returned as they are.

    A sweep without `sweep.name` gets one that is made of what it varies and what it sets, so that the same command
    continues it, also with more values to try.

    Args:
        arguments: of the command, without its name.
        conf: the folder of the config groups.

    Raises:
        RunError: if the folder of `resume_sweep=DIR` holds no sweep.
    """
    resumed = [a.removeprefix("resume_sweep=") for a in arguments if a.startswith("resume_sweep=")]
    if resumed:
        if not resumed[-1]:
            raise ValueError("resume_sweep needs the folder of a sweep: resume_sweep=outputs/sweeps/NAME")
        folder = Path(resumed[-1].strip("'\"")).resolve()
        others = [a for a in arguments if not a.startswith("resume_sweep=") and not is_multirun(a)]
        if wrong := [a for a in others if is_identity(key_of(a))]:
            raise ValueError(f"{wrong[0]} would make resume_sweep={folder} another sweep; repeat its command instead")
        settings = [f"hydra.sweep.dir={quote(folder)}", *others]
        now = {key_of(setting) for setting in settings}
        before = [argument for argument in command_of(folder) if key_of(argument) not in now]
        return ["--multirun", *insert(before, *settings)]
    if not any(map(is_multirun, arguments)):
        return arguments
    named = [a for a in arguments if a.startswith(("sweep.name=", "hydra.sweep.dir=")) and a != "sweep.name=null"]
    name = None if named else default_name(arguments, conf)
    return insert(arguments, f"sweep.default_name={name}") if name else arguments


def is_multirun(argument: str) -> bool:
    """Whether it is Hydra's flag for a sweep, which may be shortened."""
    return argument == "-m" or (argument.startswith("--m") and "--multirun".startswith(argument))


def key_of(argument: str) -> str:
    """What an override sets; another argument is itself."""
    return argument.lstrip("+~").partition("=")[0]


def insert(arguments: list[str], *overrides: str) -> list[str]:
    """Put overrides before the others: Hydra wants all of them together."""
    is_override = (index for index, argument in enumerate(arguments) if "=" in argument and argument[0] != "-")
    at = next(is_override, len(arguments))
    return [*arguments[:at], *overrides, *arguments[at:]]


def flags(arguments: list[str]) -> list[str]:
    """Those of a sweep's arguments that say where its config files are."""
    found = []
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if argument.startswith(("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")):
            found += [argument] if "=" in argument else [argument, following]
    return found


def command_of(folder: Path) -> list[str]:
    """The arguments with which a sweep was last started.

    Raises:
        RunError: if the folder holds no sweep.
    """
    started = [event for event in read_journal(folder) if event["event"] == "sweep"]
    if not started:
        raise RunError(f"{folder} is not the folder of a sweep: there is no {folder / JOURNAL}")
    return [argument for argument in started[-1]["arguments"] if not is_multirun(argument)]


def default_name(arguments: list[str], conf: Path) -> str | None:
    """`GROUPS_KEYS_HASH`: the groups that are set, the keys that vary; None where Hydra will refuse the command."""
    settings = [a for a in arguments if "=" in a and a[0] != "-"]
    others = [a for a in arguments if a not in settings and not is_multirun(a)]
    try:
        overrides = OverridesParser.create().parse_overrides(settings)
    except OverrideParseException:
        return None
    overrides = [o for o in overrides if is_identity(o.key_or_group) or o.key_or_group == "hydra/sweeper"]
    varied = [o.key_or_group for o in overrides if o.is_sweep_override()]
    fixed = [o for o in overrides if not o.is_sweep_override()]
    groups = [o.get_value_element_as_str() for o in fixed if (conf / o.key_or_group).is_dir()]
    content = repr((sorted(varied), sorted(o.input_line for o in fixed), *sorted(others)))
    words = [word for word in groups if word != "none"] + [key.rpartition(".")[2] for key in varied] or ["defaults"]
    readable = "-".join(word for word in words if word.replace("_", "").isalnum())[:60]
    return f"{readable}_{hashlib.sha256(content.encode()).hexdigest()[:6]}"
