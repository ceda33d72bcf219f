"""What `vae-lab --help` says. The table of groups is made from the config folder."""

from itertools import takewhile
from pathlib import Path
from textwrap import TextWrapper

import yaml

PACKAGE = Path(__file__).parent.parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
USAGE = """\
vae-lab trains a variational autoencoder from a config composed of groups.

Usage
  vae-lab [group=option ...] [key=value ...]   train one experiment
  vae-lab -m key=a,b,c ...                     sweep over all combinations
  vae-lab resume=RUN_DIR                       continue an interrupted run in place
{commands}

Groups (the first option is the default; vae-lab --help GROUP says what they are)
{groups}

Examples
  vae-lab
  vae-lab dataset=mnist model=conv latent_dim=2 trainer.max_epochs=10
  vae-lab experiment=flax_vae_mnist logger=none
  vae-lab dataset=image_folder dataset.root=my_pictures dataset.image_size=32 model=conv loss=mse
  vae-lab -m loss.KLD_weight=0.5,1,4 seed=0,1,2

Every key, its value and its meaning: vae-lab --cfg job, and the files in conf/.

  vae-lab --cfg job             print the composed config
  vae-lab --info defaults-tree  print where it comes from
  vae-lab --hydra-help          Hydra's own options (completion, config folders)
  hydra/launcher=basic          the jobs of a sweep in one process, to debug; see docs/sweeps.md"""
ASIDE = ("shared", "help")  # folders of pieces that are no options
WIDTH = 100


def groups(conf: Path) -> dict[str, dict[str, str]]:
    """The config groups, their options and what each is.

    Args:
        conf: the folder of the config groups.

    Returns:
        Group -> option -> the first line of its comment, or "". The groups come as `config.yaml` lists them, of each
        the default option first.
    """
    defaults: dict[str, str] = {}  # group -> option
    found: dict[str, dict[str, str]] = {}
    for path in [conf / "config.yaml", *sorted(conf.glob("*/**/*.yaml"))]:
        text, group = path.read_text(), path.parent.relative_to(conf).as_posix()
        for entry in (yaml.safe_load(text) or {}).get("defaults", ()):
            for name, option in entry.items() if isinstance(entry, dict) else ():
                name = name.removeprefix("optional ").removeprefix("override ")
                defaults.setdefault(name if path.parent == conf else f"{group}/{name}", option)
        if path.parent != conf and path.parent.name not in ASIDE:
            comments = takewhile(lambda line: line.startswith("#"), text.splitlines())
            said = (line.lstrip("# ") for line in comments if "@package" not in line)
            found.setdefault(group, {})[path.stem] = next(said, "")
    order = {name.partition("/")[0]: place for place, name in reversed(list(enumerate(defaults)))}
    names = sorted(found, key=lambda group: (order.get(group.partition("/")[0], len(order)), group))
    return {name: dict(sorted(found[name].items(), key=lambda o: (o[0] != defaults.get(name), o[0]))) for name in names}


def help_text(conf: Path, commands: dict[str, str], group: str | None = None) -> str:
    """What `vae-lab --help` prints, of one group where it is named; at most 100 characters wide.

    Args:
        conf: the folder of the config groups.
        commands: how further commands are called, and what each does.
        group: whose options are wanted; None is the overview.

    Raises:
        ValueError: if there is no such group.
    """
    known = groups(conf)
    if group is None:
        table = [(name, ", ".join(options)) for name, options in known.items()]
        calls = "\n".join(f"  {call:<43}  {meaning}" for call, meaning in commands.items())
        return USAGE.format(commands=calls, groups=columns(table))
    if group not in known:
        raise ValueError(f"there is no group {group}, only {', '.join(known)}")
    return columns([(f"{group}={option}", said) for option, said in known[group].items()])


def columns(rows: list[tuple[str, str]]) -> str:
    """Two columns, the second one wrapped."""
    width = max(len(first) for first, _ in rows) + 4
    wrap = TextWrapper(WIDTH, subsequent_indent=" " * width, break_on_hyphens=False)
    lines = []
    for first, second in rows:
        wrap.initial_indent = f"  {first}".ljust(width)
        lines.append(wrap.fill(second) or f"  {first}")
    return "\n".join(lines)
