"""`vae-lab-play`: trained runs in a browser, on this machine alone."""

import gc
import socket
from importlib.util import find_spec
from pathlib import Path

from vae_lab.config.arguments import read_arguments
from vae_lab.errors import RunError

USAGE = """vae-lab-play: trained runs in a browser: move their latents, sample, reconstruct, interpolate, edit codes.

  vae-lab-play RUN_DIR... [key=value]     a folder of a run, or of its export; several are shown side by side

  checkpoint=best      best, last, or one that was kept, as epoch_0010
  port=8501
  address=127.0.0.1    of this machine alone; 0.0.0.0 is for a container whose port is published on 127.0.0.1

  data_root=DIR and dataset.root=DIR say where the images are now. Nothing is downloaded, and nothing is sent away."""
DEFAULTS = {"checkpoint": "best", "port": 8501, "address": "127.0.0.1", "data_root": None, "dataset.root": None}
ALLOWED = {"port": range(1, 65536), "address": ("127.0.0.1", "0.0.0.0")}


def play(arguments: list[str]) -> None:
    """Serve the playground of the runs named on the command line until it is interrupted.

    Args:
        arguments: run folders and key=value settings; see `USAGE`.

    Raises:
        ValueError: if a setting is wrong.
        RunError: if Streamlit is missing, the port is taken, or a folder is not a run that can be loaded.
    """
    folders, settings = read_arguments(arguments, DEFAULTS, USAGE, ALLOWED)
    if not folders:
        raise ValueError("no run folder given; usage: vae-lab-play RUN_DIR... [key=value], or --help")
    if find_spec("streamlit") is None:
        raise RunError("vae-lab play needs Streamlit; install it with: pip install 'vae_lab[play]'")
    from streamlit import net_util
    from streamlit.web import bootstrap

    from vae_lab.play import app
    from vae_lab.play.subject import MAX_BYTES

    app.open_all(folders, settings)  # a run that is refused is one line here, and no page in the browser
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings["address"], settings["port"]))
        except OSError as error:
            raise RunError(f"port={settings['port']} cannot be used ({error.strerror}); choose another one") from error
    options = {
        "server.address": settings["address"],
        "server.port": settings["port"],
        "server.fileWatcherType": "none",
        "server.maxUploadSize": MAX_BYTES // 10**6,
        "browser.serverAddress": "127.0.0.1",
        "browser.gatherUsageStats": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "logger.hideWelcomeMessage": True,
    }
    net_util.get_external_ip = lambda: None  # it asks others, at a visit from a page of a stranger, who is refused
    print(f"playing   {', '.join(map(str, folders))}\nopen      http://127.0.0.1:{settings['port']}   (Ctrl-C ends it)")
    gc.freeze()  # Streamlit collects garbage after every move: torch alone would take it a third of a second
    bootstrap.load_config_options(options)
    bootstrap.run(str(Path(__file__).with_name("script.py")), False, [], options)
